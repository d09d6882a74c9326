"""The demo in miniature, as a script: a network of one layer, one epoch of everything."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from bench.attention import AttentionShape
from cost_models.calibration import AttentionWorkload, CalibrationPlan, EvaluationPlan, NetworkWorkload
from cost_models.sweep import Limits, draw_cases
from demo import DemoSettings, demo
from models.spec import BlockSpec, ViTSpec
from nas.settings import DEMO_SEARCH, DEMO_TEACHER

SPEC = ViTSpec(32, 8, 16, 10, (BlockSpec(("softmax",) * 2, 8, 16),) * 2, name="tiny")
PLAN = CalibrationPlan(tuple(draw_cases(1, 4, Limits(20_000, 2_000_000))), (NetworkWorkload(SPEC),) * 2, passes=2)
TEST = EvaluationPlan(
    tuple(draw_cases(2, 1, Limits(20_000, 2_000_000), PLAN.cases)),
    (AttentionWorkload(("softmax",) * 2, 9, 16),),
    (NetworkWorkload(SPEC.with_kinds("scaling")),) * 2,
    passes=2,
)
ONE_EPOCH = replace(DEMO_TEACHER, epochs=2)
SETTINGS = DemoSettings(
    spec=SPEC,
    ratios=(0.5,),
    retrained=(("latency@cheetah-wan", 0.5), ("l1", 0.5)),
    seeds=(0,),
    shape=AttentionShape(9, 16, 2),
    repeats=2,
    plan=PLAN,
    test=TEST,
    teacher=ONE_EPOCH,
    search=replace(DEMO_SEARCH, epochs=2),
    retrain=ONE_EPOCH,
    secure_images=8,
)

if __name__ == "__main__":
    result = demo(Path(sys.argv[1]), Console(stderr=True), SETTINGS)
    print(json.dumps(result))
