"""What the operator is told on its command line; the chart writes it."""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple


class Listen(NamedTuple):
    """An address to listen on."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Settings:
    """The operator's configuration."""

    namespaces: tuple[str, ...]
    """Whose runs are looked after; empty = everybody's."""
    trainer_image: str
    trainer_pull_policy: str
    webhook_listen: Listen
    webhook_url: str
    """How trainers reach the receiver."""
    webhook_tls_secret: str
    metrics_listen: Listen
    ambient_storage: tuple[str, ...]
    collect_timeout: float
    currency: str
    """What stands before the sums in a run's status: the currency of the pools' prices."""
    notice_taints: tuple[str, ...]
    """Keys of more taints that announce the end of a node."""
    notice_conditions: tuple[str, ...]
    """Types of more node conditions that do."""
    log_level: str
    own_namespace: str
    own_name: str


def parse(arguments: Sequence[str]) -> Settings:
    """Read the command line; a wrong one ends the process with a sentence that says what is wrong."""
    parser = argparse.ArgumentParser(
        prog="lorafinetune",
        description="The operator: fine-tune SDXL LoRAs on interruptible GPUs and never lose work.",
        epilog="lorafinetune simulate --help: what runs would cost, by its decisions, without a cluster.",
    )
    add = parser.add_argument
    add("--namespace", action="append", default=[], help="look after runs in this namespace only (repeatable)")
    add("--trainer-image", required=True, help="image of the trainer's pods")
    add("--trainer-pull-policy", default="IfNotPresent", choices=["Always", "IfNotPresent", "Never"])
    add("--webhook-listen", type=_listen, default=Listen("0.0.0.0", 8443), metavar="HOST:PORT")
    add("--webhook-url", required=True, type=_https, help="https://host:port by which trainers reach this process")
    add("--webhook-tls-secret", default="lorafinetune-webhook-tls", help="Secret that keeps the webhook's certificate")
    add("--metrics-listen", type=_listen, default=Listen("0.0.0.0", 8080), metavar="HOST:PORT")
    add(
        "--ambient-storage",
        action="append",
        default=[],
        type=_s3,
        help="prefix for which runs need no Secret (repeatable)",
    )
    add(
        "--collect-timeout",
        type=_seconds,
        default=900.0,
        help="seconds until an unreachable bucket is given up on delete",
    )
    add("--notice-taint", action="append", default=[], metavar="KEY", help="a taint that announces a node's end, too")
    add("--notice-condition", action="append", default=[], metavar="TYPE", help="a node condition that does")
    add("--currency", default="$", type=_currency, help="what stands before sums: the currency of the pools' prices")
    add("--log-level", default="info", choices=["debug", "info", "warning", "error"])
    given = parser.parse_args(arguments)
    return Settings(
        namespaces=tuple(dict.fromkeys(given.namespace)),
        trainer_image=given.trainer_image,
        trainer_pull_policy=given.trainer_pull_policy,
        webhook_listen=given.webhook_listen,
        webhook_url=given.webhook_url.rstrip("/"),
        webhook_tls_secret=given.webhook_tls_secret,
        metrics_listen=given.metrics_listen,
        ambient_storage=tuple(given.ambient_storage),
        collect_timeout=given.collect_timeout,
        notice_taints=tuple(given.notice_taint),
        notice_conditions=tuple(given.notice_condition),
        currency=given.currency,
        log_level=given.log_level,
        own_namespace=os.environ.get("POD_NAMESPACE", "default"),
        own_name=os.environ.get("POD_NAME", socket.gethostname()),
    )


def _listen(text: str) -> Listen:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return Listen(host.strip("[]"), int(port))


def _https(text: str) -> str:
    if not text.startswith("https://"):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with https://")
    return text


def _s3(text: str) -> str:
    if not text.startswith("s3://"):
        raise argparse.ArgumentTypeError(f"{text!r} does not begin with s3://")
    return text


def _currency(text: str) -> str:
    if len(text) > 4 or any(one.isdigit() for one in text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a currency's sign of at most four characters")
    return text


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if seconds <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above zero")
    return seconds
