"""The adapter against peft's: the same names, outputs and gradients; on the real SDXL, the layers that kohya adapts."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lorafinetune.contract.training import Targets
from lorafinetune_trainer.failure import Failure
from lorafinetune_trainer.training import adapter, model
from tests.unit.trainer import tiny
from tests.unit.trainer.product import SDXL

INPUTS = (
    torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1)),
    torch.tensor([3, 700]),
    torch.randn(2, 77, 64, generator=torch.Generator().manual_seed(2)),
    torch.randn(2, 32, generator=torch.Generator().manual_seed(3)),
    torch.rand(2, 6, generator=torch.Generator().manual_seed(4)) * 64,
)


def of_peft(settings: Any) -> tuple[Any, dict[str, torch.nn.Parameter]]:
    """The same UNet with an adapter by peft."""
    from peft import LoraConfig, inject_adapter_in_model

    lora = settings.lora
    unet = copy.deepcopy(tiny.frozen()[0])
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha or lora.rank,
        use_rslora=lora.rs_lora,
        use_dora=lora.dora,
        init_lora_weights=False,
        target_modules=[*adapter.UNET[lora.targets]],
    )
    inject_adapter_in_model(config, unet)
    names = {name: weight for name, weight in sorted(unet.named_parameters()) if "lora_" in name}
    return unet, {f"unet.{name.replace('.default', '')}": weight for name, weight in names.items()}


@pytest.mark.parametrize(
    "lora",
    [{}, {"alpha": 2}, {"rsLora": True, "alpha": 8}, {"targets": "All"}, {"dora": True, "alpha": 8, "targets": "All"}],
    ids=str,
)
def test_it_computes_what_peft_computes(lora: dict[str, Any]) -> None:
    settings = tiny.training(lora=lora)
    ours = tiny.model(settings)
    unet, theirs = of_peft(settings)
    assert list(ours.weights) == list(theirs)
    random = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, weight in ours.weights.items():
            if "magnitude" in name:
                weight.mul_(1.0 + 0.1 * torch.randn(weight.shape, generator=random))
            else:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=random))
            theirs[name].copy_(weight)
            theirs[name].requires_grad_(True)
    found = ours.predict(*INPUTS)
    noisy, timesteps, embeddings, pooled, ids = INPUTS
    wanted = unet(
        noisy, timesteps, embeddings, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}, return_dict=False
    )[0]
    assert torch.allclose(found, wanted, atol=1e-5)
    found.square().mean().backward()
    wanted.square().mean().backward()
    for name, weight in ours.weights.items():
        assert weight.grad is not None
        assert theirs[name].grad is not None
        assert torch.allclose(weight.grad, theirs[name].grad, rtol=1e-3, atol=1e-6), name


VIEWS = {
    "view",
    "_unsafe_view",
    "t",
    "transpose",
    "permute",
    "detach",
    "expand",
    "unsqueeze",
    "slice",
    "select",
    "split",
}


class Counter(TorchDispatchMode):
    """Counts the operations that do something: views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += function.__name__.split(".")[0] not in VIEWS
        return function(*args, **(kwargs or {}))


def test_it_takes_two_thirds_of_the_operations_that_peft_takes() -> None:
    """In 16 bits, forward and backward, with gradients collected and weights made anew: as a step does it."""
    settings = tiny.training(precision="bf16", gradientAccumulation=1)
    loop = tiny.loop(settings)
    batches = loop._batches.at(0)
    unet, weights = of_peft(settings)
    unet.to(torch.bfloat16)
    for weight in weights.values():
        weight.data = weight.data.float()
        weight.requires_grad_(True)
    noisy, timesteps, embeddings, pooled, ids = INPUTS

    def with_peft() -> None:
        with torch.autocast("cpu", torch.bfloat16):
            found = unet(
                noisy[:1].bfloat16(),
                timesteps[:1],
                embeddings[:1].bfloat16(),
                added_cond_kwargs={"text_embeds": pooled[:1].bfloat16(), "time_ids": ids[:1]},
                return_dict=False,
            )[0]
        found.float().square().mean().backward()

    def with_ours() -> None:
        for batch in batches:
            loop._pass(batch)

    counts = []
    for act in (with_ours, with_peft):
        act()  # gradients exist from here on
        with Counter() as counter:
            act()
        counts.append(counter.count)
    assert counts[0] < 0.67 * counts[1], counts


@pytest.mark.parametrize("changes", [{}, {"lora": {"dora": True, "targets": "All"}}], ids=["LoRA", "DoRA"])
def test_it_begins_as_the_frozen_model_and_depends_on_seed_and_name_only(changes: dict[str, Any]) -> None:
    settings = tiny.training(**changes)
    unet = tiny.frozen()[0]
    noisy, timesteps, embeddings, pooled, ids = INPUTS
    plain = unet(
        noisy, timesteps, embeddings, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}, return_dict=False
    )[0]
    torch.manual_seed(1)
    one = tiny.model(settings)
    torch.manual_seed(2)
    other = tiny.model(settings)
    assert torch.allclose(one.predict(*INPUTS), plain, atol=1e-5)
    assert all(torch.equal(one.weights[name], other.weights[name]) for name in one.weights)
    down = [weight for name, weight in one.weights.items() if name.endswith(adapter.DOWN)]
    assert len({tuple(weight.flatten()[:4].tolist()) for weight in down}) == len(down)
    seeded = tiny.model(tiny.training(seed=1, **changes))
    name = next(name for name in one.weights if name.endswith(adapter.DOWN))
    assert not torch.equal(one.weights[name], seeded.weights[name])


@pytest.mark.parametrize(("targets", "modules"), [(Targets.ATTENTION, 560), (Targets.ALL, 722)])
def test_layers_of_the_real_sdxl(targets: Targets, modules: int) -> None:
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL)
        weights = model.add_adapter(unet, tiny.training(lora={"targets": targets, "dora": True}), initialise=False)
    ends = {adapter.DOWN: 0, adapter.UP: 0, adapter.MAGNITUDE: 0}
    for name in weights:
        ends[next(end for end in ends if name.endswith(end))] += 1
    assert set(ends.values()) == {modules}
    assert all(parameter.requires_grad == ("lora_" in name) for name, parameter in unet.named_parameters())


def test_text_encoders_are_named_by_their_part() -> None:
    weights = tiny.model(tiny.training(lora={"textEncoder": True, "targets": "All"})).weights
    ours = {name.split(".")[0] for name in weights}
    assert ours == {"unet", "text_encoder", "text_encoder_2"}
    ends = {name.rsplit(".", 3)[1] for name in weights if name.startswith("text_encoder.")}
    assert ends == {"q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"}


def test_a_convolution_in_place_of_a_projection_is_refused() -> None:
    part = torch.nn.ModuleDict({"proj_in": torch.nn.Conv2d(4, 4, 1)})
    with pytest.raises(Failure, match=r"unet\.proj_in of the base model is no linear layer"):
        adapter.add(part, "unet", ("proj_in",), tiny.training().lora, dora=False)


@pytest.mark.parametrize("encoders", [False, True])
def test_predictions_with_copies(encoders: bool) -> None:
    """Validation computes with copies, in the middle of a training: same answer, and nothing trained is touched."""
    loop = tiny.loop(tiny.training(lora={"textEncoder": encoders}, precision="bf16", emaDecay=0.5))
    tiny.train(loop, 1)
    early = loop.published()
    tiny.train(loop, 2)
    trained, before = loop._model, loop.snapshot()
    captions = ["photo of sks dog", "a cat"]

    def see(weights: Any) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            given = trained.embed(captions, weights=weights) if encoders else INPUTS[2:4]
            return (trained.predict(*INPUTS[:2], *given, INPUTS[4], weights=weights), *given)

    now = see(None)
    masters = {name: part for one in loop._vectors for name, part in one.split(one.master.detach()).items()}
    assert all(torch.equal(one, other) for one, other in zip(now, see(masters), strict=True))
    then = see(early)
    assert not torch.equal(now[0], then[0])
    if encoders:
        assert not torch.equal(now[1], then[1])
    assert all(torch.equal(one, other) for one, other in zip(now, see(None), strict=True))
    assert tiny.differing(before, loop.snapshot()) == []
