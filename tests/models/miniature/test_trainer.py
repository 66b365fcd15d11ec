"""The one loop that trains every part."""

import torch
from safetensors.torch import load_file

from sr4g_utils.models.miniature import training
from sr4g_utils.models.miniature.training import BATCH, Trainer


def test_training_resumes_to_the_same_weights(tmp_path, monkeypatch):
    monkeypatch.setitem(BATCH, "text", 8)
    weights = []
    for name, stops in (("straight", [6]), ("interrupted", [3, 6])):
        for stop in stops:
            trainer_run = Trainer.run

            def run(self, loss_of, every=250, stop=stop, original=trainer_run):
                def limited(step, rng):
                    if step == stop:
                        raise KeyboardInterrupt
                    return loss_of(step, rng)

                original(self, limited, every=3)

            monkeypatch.setattr(Trainer, "run", run)
            try:
                text, _ = training.train_text(tmp_path / name, 6, 0)
                weights.append(text.state_dict())
            except KeyboardInterrupt:
                pass
            monkeypatch.setattr(Trainer, "run", trainer_run)
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    assert len(load_file(tmp_path / "straight/text/checkpoint.safetensors")) > 20
