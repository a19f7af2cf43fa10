"""
A training in Lightning, with clipping and mixed precision
==========================================================

Weights go while Lightning trains. Its gradient clipping, mixed precision and checkpoints stay as they
are.
"""

# %%
import lightning.pytorch as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from prunekit.integrations.lightning import LightningPruning
from prunekit.methods import gradual_magnitude


class Classifier(L.LightningModule):  # your module
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01)


torch.manual_seed(0)
inputs = torch.randn(256, 20)
data = TensorDataset(inputs, (inputs[:, 0] > 0).long())

# %%
# 80 % of the weights in five steps, one after every fourth step of the optimizer.
pruning = LightningPruning(gradual_magnitude(sparsity=0.8, steps=5), every=4)
options = {"max_epochs": 4, "gradient_clip_val": 0.5, "precision": "bf16-mixed", "accelerator": "cpu"}
quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
trainer = L.Trainer(callbacks=[pruning], default_root_dir="lightning-runs", **options, **quiet)
model = Classifier()
trainer.fit(model, DataLoader(data, batch_size=32))
print(pruning.session.masks)
