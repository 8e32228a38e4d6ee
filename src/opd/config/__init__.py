"""One YAML file describes a run: strict, frozen, validated once. No torch, and no building."""

from opd.config.files import dump, load, load_each, overridden, parse, parse_stored, read, validate
from opd.config.guards import AlarmAction, AlarmName, AlarmRule, Alarms, Grow, Horizon, Prune
from opd.config.mistakes import WELL_KNOWN
from opd.config.models import (
    Cache,
    Launch,
    LocalTeacher,
    Lora,
    PythonTeacher,
    SelfTeacher,
    ServerTeacher,
    Student,
    Teacher,
)
from opd.config.paths import input_paths, output_paths
from opd.config.prompts import Grader, PromptFile, Prompts
from opd.config.recipes import AnswerRule, Coldstart, Select
from opd.config.reference import known_keys, reference, settable_keys
from opd.config.removed import REMOVED, upgrade
from opd.config.schema import (
    Diagnostics,
    EvalSet,
    Loss,
    Optim,
    Output,
    RolloutConfig,
    Run,
    Terms,
    Train,
)
from opd.config.section import Section

__all__ = [
    "REMOVED",
    "WELL_KNOWN",
    "AlarmAction",
    "AlarmName",
    "AlarmRule",
    "Alarms",
    "AnswerRule",
    "Cache",
    "Coldstart",
    "Diagnostics",
    "EvalSet",
    "Grader",
    "Grow",
    "Horizon",
    "Launch",
    "LocalTeacher",
    "Lora",
    "Loss",
    "Optim",
    "Output",
    "PromptFile",
    "Prompts",
    "Prune",
    "PythonTeacher",
    "RolloutConfig",
    "Run",
    "Section",
    "Select",
    "SelfTeacher",
    "ServerTeacher",
    "Student",
    "Teacher",
    "Terms",
    "Train",
    "dump",
    "input_paths",
    "known_keys",
    "load",
    "load_each",
    "output_paths",
    "overridden",
    "parse",
    "parse_stored",
    "read",
    "reference",
    "settable_keys",
    "upgrade",
    "validate",
]
