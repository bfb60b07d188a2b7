"""The operator as one process: stores, leader, loop, receiver, front door; all begin and end together."""

from __future__ import annotations

import asyncio
import datetime
import logging
import os
import time
from typing import Any

import kopf

from lorafinetune.jobs import Jobs
from lorafinetune.kube import election, handlers, seen
from lorafinetune.kube.client import NODES, PODS, POOLS, RUNS, SECRETS, Cluster
from lorafinetune.kube.events import EventRecorder
from lorafinetune.kube.pods import Trainer
from lorafinetune.kube.reflector import Reflector, trim
from lorafinetune.kube.store import Change, Store
from lorafinetune.kube.stores import NamespacedStore
from lorafinetune.loop import Loop, Stores
from lorafinetune.receiver.certificate import host_of
from lorafinetune.receiver.judge import Judge
from lorafinetune.receiver.server import Receiver
from lorafinetune.settings import Settings
from lorafinetune.telemetry import Health, Metrics
from lorafinetune.webhooktls import load_or_make
from lorafinetune.witness import Witness

LEASE = "lorafinetune"

_log = logging.getLogger(__name__)
