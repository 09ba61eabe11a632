"""Drawn sources: pictures that the model did not make, whose true edits are known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from adapedit.evaluation.suite import Case
from adapedit.inversion import InversionSettings
from adapedit.scenes.render import render


@dataclass(frozen=True)
class Rendered:
    """Sources are drawings of the cases' scenes, which the methods get through an inversion."""

    inversion: InversionSettings

    @property
    def about(self) -> Mapping[str, Any]:
        """What tells these scores from others, ready for JSON."""
        return {"sources": "rendered", "inversion": self.inversion.model_dump(mode="json")}

    def request(self, case: Case) -> Mapping[str, Any]:
        """What the request of a case has besides."""
        return {"image": self.picture(case), "inversion": self.inversion}

    def picture(self, case: Case) -> Image.Image:
        """The drawing."""
        return Image.fromarray(render(case.source).image)

    def truth(self, case: Case) -> Image.Image:
        """The drawing of the true edit."""
        return Image.fromarray(render(case.target).image)
