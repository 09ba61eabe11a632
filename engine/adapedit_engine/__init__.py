"""Rows, controls and the denoising loop: a UNet that takes an edit as data."""

from adapedit_engine.adaptive import Adaptive, Found, observe
from adapedit_engine.blend import LocalBlend, blend_mask
from adapedit_engine.denoising import denoise, group_plans
from adapedit_engine.layout import Layout
from adapedit_engine.loop import EditOutcome, EditState, begin, outcome, tick
from adapedit_engine.models.controls import CONTROL_NAMES, ControlError, Controls
from adapedit_engine.models.layers import LayerSpec, ModelSpecs, UnsupportedModelError
from adapedit_engine.models.unet import (
    INPUT_NAMES,
    OUTPUT_NAMES,
    ControlledUNet,
    UNetOutput,
    controlled_attention,
)
from adapedit_engine.plan import EditPlan, PlanError, plan_rows
from adapedit_engine.rows import RowTables, check_plan, held, spatial_weight
from adapedit_engine.runners import Capabilities, Runner, RunnerError
from adapedit_engine.runners.pytorch import PyTorchRunner
from adapedit_engine.schedule import Schedule, ScheduleError

__all__ = [
    "CONTROL_NAMES",
    "INPUT_NAMES",
    "OUTPUT_NAMES",
    "Adaptive",
    "Capabilities",
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
