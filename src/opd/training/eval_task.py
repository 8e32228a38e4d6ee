"""A held-out set that is ready to run."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

from opd.data.graders import Grader
from opd.data.prompts import PromptSet
from opd.samplers.decoding import Decoding


@dataclass(frozen=True)
class EvalTask:
    """One held-out set, ready to run."""

    label: str
    prompts: PromptSet
    grader: Grader
    decoding: Decoding
    n: int
    every: int
    teachers: tuple[str, ...] = ()  # of several, who teaches each prompt; "": none is named

    @property
    def routes(self) -> dict[int, str]:
        """Who teaches a prompt, by `Prompt.index`; empty where nobody is named."""
        pairs = zip(self.prompts.prompts, self.teachers, strict=False)
        return {prompt.index: name for prompt, name in pairs}

    @property
    def key(self) -> dict[str, Any]:
        """What an evaluation's numbers depend on besides model and seed."""
        own = {"n": self.n, "prompts": self.prompts.digest, "grader": self.grader.kind}
        if self.teachers:
            own["teachers"] = hashlib.sha256(json.dumps(self.teachers).encode()).hexdigest()
        return asdict(self.decoding) | own
