"""The exported files on made-up matrices: scales, headers, the model card and its curve."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
import yaml

from lorafinetune.contract.runconfig import Validation
from lorafinetune_trainer.product import card, curve, diffusers, export, header, kohya
from lorafinetune_trainer.product.product import Product
from lorafinetune_trainer.saving import state
from tests.unit.trainer.product import MODULE, product, weights

WEIGHTS = weights()
A, B = f"unet.{MODULE}.lora_A.weight", f"unet.{MODULE}.lora_B.weight"
KOHYA = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
HISTORY = card.History("team/one", "uid-of-one", 3, 61.4)


@pytest.mark.parametrize(
    ("lora", "scale", "alpha"),
    [({"alpha": 8}, 2.0, 8.0), ({"alpha": 4}, 1.0, 4.0), ({"alpha": 8, "rsLora": True}, 4.0, 16.0)],
)
def test_the_scale_is_folded_for_diffusers_and_an_alpha_for_kohya(
    lora: dict[str, float], scale: float, alpha: float
) -> None:
    made = product(lora=lora)
    folded = diffusers.tensors(WEIGHTS, made)
    assert torch.equal(folded[A], WEIGHTS[A])
    assert torch.equal(folded[B], WEIGHTS[B] * scale)
    written = kohya.tensors(WEIGHTS, made)
    assert torch.equal(written[f"{KOHYA}.lora_up.weight"], WEIGHTS[B])
    assert written[f"{KOHYA}.alpha"] == alpha


def test_files_depend_on_nothing_but_config_data_and_base_model() -> None:
    one, other = (export.files(WEIGHTS, product(name=name)) for name in ("one", "other"))
    assert one[export.DIFFUSERS] == other[export.DIFFUSERS]
    assert one[export.KOHYA] == other[export.KOHYA]
    for changed in (product(seed=5), product(steps=501)):
        assert export.diffusers_file(WEIGHTS, changed) != one[export.DIFFUSERS]
        assert export.kohya_file(WEIGHTS, changed) != one[export.KOHYA]


def test_other_files_come_along_and_replace_none_of_the_loras() -> None:
    found = export.files(WEIGHTS, product(), extra={"samples/1.png": b"png"})
    assert found["samples/1.png"] == b"png"
    with pytest.raises(ValueError, match="lora_kohya"):
        export.files(WEIGHTS, product(), extra={export.KOHYA: b""})


CAPTIONS = (("sks dog, outdoors", 2), ("sks dog, a, b", 1))
MAKE = """
import hashlib, sys
from lorafinetune_trainer.product import header
from lorafinetune_trainer.product.product import Product
from lorafinetune_trainer.saving import state
from tests.unit.trainer.product import product
made = product(captions={captions!r}, minSnrGamma=5)
print(hashlib.sha256(state.encode({{}}, header.kohya(made))).hexdigest())
"""


def test_headers_are_the_same_bytes_in_every_process() -> None:
    made = product(captions=CAPTIONS, minSnrGamma=5)
    digests = {hashlib.sha256(state.encode({}, header.kohya(made))).hexdigest()}
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        command = [sys.executable, "-c", MAKE.format(captions=CAPTIONS)]
        digests.add(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.strip())
    assert len(digests) == 1


def test_the_headers_say_what_people_look_for() -> None:
    made = product(captions=CAPTIONS, seed=7, zeroTerminalSnr=True, prediction="v_prediction")
    files = export.files(WEIGHTS, made)
    metadata = state.decode(files[export.DIFFUSERS]).metadata
    assert metadata == {
        "format": "pt",
        "lorafinetune.baseModelDigest": "b" * 64,
        "lorafinetune.configDigest": "c" * 64,
        "lorafinetune.datasetDigest": "d" * 64,
        "lorafinetune.images": "12",
        "lorafinetune.instancePrompt": "a photo of | sks dog",
        "lorafinetune.rank": "4",
        "lorafinetune.alpha": "8",
        "lorafinetune.targets": "Attention",
        "lorafinetune.dora": "False",
        "lorafinetune.rsLora": "False",
        "lorafinetune.textEncoder": "False",
        "lorafinetune.prediction": "v_prediction",
        "lorafinetune.zeroTerminalSnr": "True",
        "lorafinetune.resolution": "1024",
        "lorafinetune.steps": "500",
        "lorafinetune.seed": "7",
    }
    found = state.decode(files[export.KOHYA]).metadata
    assert found.items() >= metadata.items()
    assert found["modelspec.architecture"] == "stable-diffusion-xl-v1-base/lora"
    assert found["modelspec.prediction_type"] == "v"
    assert (found["ss_v_parameterization"], found["ss_zero_terminal_snr"]) == ("True", "True")
    assert found["modelspec.trigger_phrase"] == "a photo of | sks dog"
    assert (found["ss_network_dim"], found["ss_network_alpha"], found["ss_seed"]) == ("4", "8", "7")
    assert json.loads(found["ss_tag_frequency"]) == {"img": {"sks dog": 2, "a": 1, "b": 1, "outdoors": 1}}
    assert state.decode(export.kohya_file(WEIGHTS, product())).metadata["modelspec.prediction_type"] == "epsilon"


@pytest.mark.parametrize("base", [False, True])
def test_a_noise_schedule_that_comes_with_the_base_model_is_told_too(base: bool) -> None:
    made = product(prediction="v_prediction", base_zero_snr=base)
    found = state.decode(export.kohya_file(WEIGHTS, made)).metadata
    assert (found["ss_zero_terminal_snr"], found["lorafinetune.zeroTerminalSnr"]) == (str(base), str(base))
    assert ("zero terminal SNR" in card.write(made, HISTORY)) is base


def test_tags_are_bounded_and_the_most_frequent_stay() -> None:
    captions = tuple((f"tag {number:04}, often", 1) for number in range(2 * header.MAX_TAGS))
    found = header.tags(product(captions=captions))
    assert len(found["img"]) == header.MAX_TAGS
    assert next(iter(found["img"].items())) == ("often", 2 * header.MAX_TAGS)
    many = product(captions=[(f"{number}", 1, f"1_{number}") for number in range(2 * header.MAX_FOLDERS)])
    assert len(header.folders(many)) == len(header.tags(many)) == header.MAX_FOLDERS


TWO = [("sks dog", 3, "3_sks dog"), ("sks dog", 3, "3_sks dog"), ("red car", 2, "2_red car"), ("a hill, sky", 1)]


def test_the_header_tells_of_each_concepts_folder_as_kohyas_scripts_do() -> None:
    """Each image once in the tags; repeats in the folders' entries and in the number of images of an epoch."""
    found = header.kohya(product(captions=TWO, images=4))
    assert json.loads(found["ss_dataset_dirs"]) == {
        "2_red car": {"n_repeats": 2, "img_count": 1},
        "3_sks dog": {"n_repeats": 3, "img_count": 2},
        "img": {"n_repeats": 1, "img_count": 1},
    }
    assert json.loads(found["ss_tag_frequency"]) == {
        "2_red car": {"red car": 1},
        "3_sks dog": {"sks dog": 2},
        "img": {"a hill": 1, "sky": 1},
    }
    assert found["ss_num_train_images"] == "9"


def without_prompt(made: Product) -> Product:
    dataset = made.config.dataset.model_copy(update={"instance_prompt": None})
    return replace(made, config=made.config.model_copy(update={"dataset": dataset}))


def test_the_words_of_all_concepts_folders_are_named_in_the_card() -> None:
    """However few images they have, and whatever the prompt for all is, as far as that was never shown."""
    for made in (product(captions=TWO[1:3]), without_prompt(product(captions=TWO[1:3]))):
        assert made.triggers == ("red car", "sks dog")
        text = card.write(made, HISTORY)
        assert "\n\nTrigger: `red car` or `sks dog`\n\n## How it was trained" in text
        assert "pipeline('red car')" in text
        assert "\n\n\n" not in text
    assert product(captions=[*TWO[1:3], ("a photo of | sks dog", 1)]).triggers == (
        "a photo of | sks dog",
        "red car",
        "sks dog",
    )
    assert without_prompt(product(captions=[("red, car", 2, "2_red car"), ("a cup", 1)])).triggers == ()


@pytest.mark.parametrize(
    ("classes", "said", "total"), [(0, "2", "2"), (5, "4: 2 training images, as many class images", "4")]
)
def test_class_images_are_counted_in_a_steps_images(classes: int, said: str, total: str) -> None:
    made = product(batchSize=2, gradientAccumulation=1, class_images=classes)
    assert f"| images per step | {said} |" in card.write(made, HISTORY)
    assert header.kohya(made)["ss_total_batch_size"] == total


def front(text: str) -> dict[str, Any]:
    """What the hub reads of a card."""
    found: dict[str, Any] = yaml.safe_load(text.removeprefix("---\n").partition("\n---\n")[0])
    return found


def shown(made: Product, *prompts: str) -> Product:
    return replace(made, config=made.config.model_copy(update={"validation": Validation(prompts=list(prompts))}))


def test_the_card_is_a_table_and_recipes() -> None:
    text = card.write(
        shown(product(source="hf://somebody/a-model"), "a sks dog | on the moon", "`a` cat"),
        HISTORY,
        samples=["samples/00000500-0.png", "samples/00000500-1.png"],
        grid="grid.png",
        curve=True,
        intermediate=["step-000100.safetensors"],
    )
    assert r"| instance prompt | a photo of \| sks dog |" in text
    assert "pipeline('a photo of | sks dog')" in text
    assert "from_pretrained('somebody/a-model', torch_dtype=torch.float16)" in text
    assert "Trigger: `a photo of | sks dog`" in text
    assert "![a sks dog \\| on the moon](samples/00000500-0.png)\n*a sks dog \\| on the moon*" in text
    assert text.index("(grid.png)") < text.index("(samples/")
    assert "![loss over the steps](loss.svg)" in text
    assert "500 steps took 61 s on GPU of one: 0.12 s a step." in text
    assert "finished by attempt 3, after interruptions" in text
    assert "`step-000100.safetensors`" in text
    assert "ComfyUI" in text
    assert "A1111" in text
    assert "It is a DoRA" not in text
    assert "dora_scale" in card.write(product(lora={"dora": True}), HISTORY)
    assert front(text) == {
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": ["text-to-image", "diffusers", "lora", "template:sd-lora", "stable-diffusion-xl"],
        "base_model": "somebody/a-model",
        "base_model_relation": "adapter",
        "instance_prompt": "a photo of | sks dog",
        "widget": [
            {"text": "a sks dog | on the moon", "output": {"url": "samples/00000500-0.png"}},
            {"text": "`a` cat", "output": {"url": "samples/00000500-1.png"}},
        ],
    }
    assert "# license: yours to choose" in text


@pytest.mark.parametrize(
    ("source", "loaded", "base"),
    [
        ("hf://o/pony/v6/pony.safetensors", "from_single_file('path/to/pony.safetensors'", "o/pony"),
        ("s3://private/models/pony.safetensors", "from_single_file('path/to/pony.safetensors'", None),
        ("/home/me/sdxl", "from_pretrained('path/to/the/base/model'", None),
    ],
)
def test_the_card_tells_a_stranger_no_places_of_ours(source: str, loaded: str, base: str | None) -> None:
    text = card.write(product(source=source), HISTORY)
    assert f"StableDiffusionXLPipeline.{loaded}" in text
    assert front(text).get("base_model") == base
    assert ("# base_model: " in text) is (base is None)
    assert "private" not in text
    assert "/home/me" not in text


@pytest.mark.parametrize(
    ("captions", "triggers"),
    [
        ((), ()),
        ((("sks dog", 10), ("sks dog", 10)), ("sks dog",)),
        ((("zwx cat", 5), ("sks dog", 10), ("sks dog", 10), ("zwx cat", 5)), ("sks dog", "zwx cat")),
        ((("sks, on a hill", 1), ("sks, asleep", 1), ("sks , by night", 1)), ("sks",)),
        ((("a dog", 1), ("a cat", 1), ("a cup", 1)), ()),
        ((("sks, asleep", 1), ("sks", 1), ("a cup", 1)), ()),
    ],
)
def test_the_trigger_comes_from_concepts_and_captions_where_there_is_no_prompt_for_all(
    captions: tuple[tuple[str, int], ...], triggers: tuple[str, ...]
) -> None:
    made = product(captions=captions)
    assert made.triggers == ("a photo of | sks dog",)
    dataset = made.config.dataset.model_copy(update={"instance_prompt": None})
    made = replace(made, config=made.config.model_copy(update={"dataset": dataset}))
    assert made.triggers == triggers
    assert header.kohya(made).get("modelspec.trigger_phrase") == (", ".join(triggers) or None)
    assert front(card.write(made, HISTORY)).get("instance_prompt") == (", ".join(triggers) or None)


def test_what_users_wrote_stays_text() -> None:
    nasty = "<script>\n# [x](y) | `z`\n---\n{title}"
    made = product()
    config = made.config.model_copy(
        update={"dataset": made.config.dataset.model_copy(update={"instance_prompt": nasty})}
    )
    text = card.write(shown(replace(made, config=config), nasty), HISTORY, samples=["samples/00000500-0.png"])
    assert front(text)["instance_prompt"] == nasty
    assert front(text)["widget"][0]["text"] == nasty
    body = text.removeprefix("---\n").partition("\n---\n")[2]
    code = "`<script> # [x](y) | 'z' --- {title}`"
    assert code in body
    assert "<script>" not in body.replace(repr(nasty), "").replace(r"\<script\>", "").replace(code, "")
    assert r"\<script\> # \[x\](y) \| \`z\` --- \{title\}" in body
    assert repr(nasty) in body


def test_the_loss_is_drawn() -> None:
    losses = [(step, 1.0 / step) for step in range(1, 2001)]
    drawn = curve.draw([*losses, (2001, float("nan"))])
    assert drawn is not None
    root = ElementTree.fromstring(drawn)
    raw, smooth = root.iter("{http://www.w3.org/2000/svg}polyline")
    points = [tuple(map(float, point.split(","))) for point in raw.attrib["points"].split()]
    assert len(points) <= curve.MAX_POINTS
    assert all(0 <= x <= curve.WIDTH and 0 <= y <= curve.HEIGHT for x, y in points)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    assert points[0][1] < points[-1][1], "the loss fell: down is up in a picture"
    assert len(smooth.attrib["points"].split()) == len(points)
    assert curve.draw(losses[:1]) is None
    assert curve.draw([(1, 0.5), (2, 0.5)]) is not None
