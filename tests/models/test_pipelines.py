"""What is said of pipelines: which classes draw from a prompt alone, and by which guidance; their parameters."""

import inspect
import json

import diffusers
import pytest
import tiny_pipelines
import torch
import transformers

from sr4g_utils.models import pipelines
from sr4g_utils.store.files import ROOT, reported


@pytest.mark.slow("imports each of diffusers' pipelines")
def test_the_table_of_pipelines_is_what_diffusers_has():
    """`docs/evaluate.md`: every class that draws from a prompt alone, by the guidance that null is."""
    rows: dict[str, list[str]] = {}
    for name in dir(diffusers):
        kind = getattr(diffusers, name) if name.endswith("Pipeline") else None
        if isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline) and not pipelines._useless(kind):
            tested = "**" * (name in tiny_pipelines.NAMES)
            rows.setdefault(guidance_by_default(kind), []).append(f"{tested}{name.removesuffix('Pipeline')}{tested}")
    text = (ROOT / "docs" / "evaluate.md").read_text(encoding="utf-8")
    table = text.split("| `guidance: null` | classes |\n|---|---|\n")[1].split("\n\n")[0].splitlines()
    expected = [f"| {guidance} | {', '.join(sorted(names))} |" for guidance, names in rows.items()]
    assert sorted(table) == sorted(expected), "\n".join(sorted(expected))


def guidance_by_default(kind: type) -> str:
    takes = pipelines.defaults(kind)
    if "guider" in inspect.signature(kind.__init__).parameters:
        return "its guider's"
    for name in ("guidance_scale", "true_cfg_scale", "decoder_guidance_scale"):
        if takes.get(name) is not None:
            return f"{takes[name]:g}"
    return "a schedule of 48 steps" if "guidance_schedule" in takes else "none"


def test_the_parameters_of_published_systems_are_those_of_their_configurations(shared):
    counted = {name: row for name, row in reported("parameters").items() if "config" in row}
    assert len(counted) == 6
    for name, row in counted.items():
        folder = shared / "hub" / row["config"].replace("/", "--")
        unet, vae, text = (
            json.loads((folder / part / "config.json").read_text()) for part in ("unet", "vae", "text_encoder")
        )
        with torch.device("meta"):
            networks = (
                diffusers.UNet2DConditionModel.from_config(unet | row.get("unet", {})),
                diffusers.AutoencoderKL.from_config(vae),
                transformers.CLIPTextModel(transformers.CLIPTextConfig(**text)),
            )
        assert sum(p.numel() for network in networks for p in network.parameters()) == row["value"], name
