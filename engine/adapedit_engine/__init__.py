"""Rows, controls and the denoising loop: a UNet that takes an edit as data."""

from adapedit_engine.adaptive import Adaptive, Found, observe
from adapedit_engine.blend import LocalBlend, blend_mask
from adapedit_engine.controls import CONTROL_NAMES, ControlError, Controls
from adapedit_engine.denoising import denoise, group_plans
from adapedit_engine.layers import LayerSpec, UnsupportedModelError
from adapedit_engine.layout import Layout
from adapedit_engine.loop import EditOutcome, EditState, begin, outcome, tick
from adapedit_engine.plan import EditPlan, PlanError, plan_rows
from adapedit_engine.rows import RowTables, check_plan, held, spatial_weight
from adapedit_engine.runners import Runner, RunnerError
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.schedule import Schedule, ScheduleError
from adapedit_engine.specs import ModelSpecs
from adapedit_engine.unet import (
    INPUT_NAMES,
    OUTPUT_NAMES,
    ControlledUNet,
    UNetOutput,
    controlled_attention,
)

__all__ = [
    "CONTROL_NAMES",
    "INPUT_NAMES",
    "OUTPUT_NAMES",
    "Adaptive",
    "ControlError",
    "ControlledUNet",
    "Controls",
    "EditOutcome",
    "EditPlan",
    "EditState",
    "Found",
    "LayerSpec",
    "Layout",
    "LocalBlend",
    "ModelSpecs",
    "PlanError",
    "PyTorchRunner",
    "RowTables",
    "Runner",
    "RunnerError",
    "Schedule",
    "ScheduleError",
    "UNetOutput",
    "UnsupportedModelError",
    "begin",
    "blend_mask",
    "check_plan",
    "controlled_attention",
    "denoise",
    "group_plans",
    "held",
    "observe",
    "outcome",
    "plan_rows",
    "spatial_weight",
    "tick",
]
