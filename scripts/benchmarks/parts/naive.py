"""The alignment as the published scripts do it, for comparison only; the package does none of this.

Every view is a full model of its own, run in a call of its own; every forward goes through all
blocks and the LM head and keeps all hidden states; every row is padded to the longest prompt and
response that are allowed. Their mistakes (means over padding, layers counted off by one) are left
out, so that the loss is the package's own.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import send_to_device
from parts.workload import Workload, responses_of
from peft import PeftModel
from torch import Tensor, nn

from rahf.data.rows import sequence_rows

VIEWS = ("reference", "positive", "negative")


class NaiveAlignment:
    """Full models for the views, a trainable LoRA on one more, and a step."""

    def __init__(self, workload: Workload, checkpointing: bool = False):
        self.workload = workload
        self.layers = workload.layers()
        if workload.method == "dual":
            names = {"reference": workload.reference, "positive": "positive"}
            names["negative"] = "negative"
            self.frozen = {view: self._merged(name) for view, name in names.items()}
        else:
            self.frozen = dict.fromkeys(VIEWS, self._merged("contrast"))
        self.policy = self._trainable()
        if checkpointing:
            self.policy.enable_input_require_grads()
            self.policy.activation_checkpointing_enable({"use_reentrant": False})
        self.optimizer = torch.optim.AdamW(
            self._parameters(), lr=workload.learning_rate, weight_decay=0.0
        )

    def step(self, pairs: Sequence[Mapping[str, Any]]) -> Tensor:
        """Make one optimiser step on both responses of the pairs; return the loss."""
        with self._autocast():
            loss = self.loss(pairs)
        loss.backward()
        nn.utils.clip_grad_norm_(self._parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def loss(self, pairs: Sequence[Mapping[str, Any]]) -> Tensor:
        """Return the norm of the distance to the target: mean over tokens, then responses and
        layers.
        """
        rows = {view: self._rows(view, pairs) for view in VIEWS}
        with torch.no_grad():
            states = {view: self._states(self.frozen[view], rows[view]) for view in VIEWS}
        shift = states["positive"] - states["negative"]
        target = states["reference"] + self.workload.alpha * shift
        distance = (self._states(self.policy, rows["reference"]) - target).norm(dim=-1)
        counts = rows["reference"]["response_mask"].sum(1).tolist()
        by_response = [part.mean(1) for part in distance.split(counts, dim=1)]
        return torch.stack(by_response).mean()

    def _states(self, model: nn.Module, rows: dict[str, Tensor]) -> Tensor:
        """Return [layers, response tokens, d_model]."""
        output = model(
            rows["input_ids"], attention_mask=rows["attention_mask"], output_hidden_states=True
        )
        states = torch.stack([output.hidden_states[layer + 1] for layer in self.layers])
        return states[:, rows["response_mask"]].float()

    def _rows(self, view: str, pairs: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        instructed = self.workload.method == "scit" and view != "reference"
        prompt = f"{view}_prompt_ids" if instructed else "prompt_ids"
        given = responses_of(list(pairs), self.workload.max_response_tokens)
        rows = sequence_rows(
            [pair[prompt] for pair, _ in given],
            [response for _, response in given],
            pad_token_id=0,
            width=self.workload.naive_width,
        )
        return send_to_device(rows, self.workload.device)

    def _merged(self, teacher: str) -> nn.Module:
        folder = str(self.workload.teacher(teacher))
        model = PeftModel.from_pretrained(self.workload.load_model(), folder)
        return model.merge_and_unload().requires_grad_(False).eval()

    def _trainable(self) -> nn.Module:
        folder = str(self.workload.teacher(self.workload.reference))
        model = PeftModel.from_pretrained(self.workload.load_model(), folder, is_trainable=True)
        for name, parameter in model.named_parameters():
            if (
                ".layers." in name
                and int(name.split(".layers.")[1].split(".")[0]) > self.layers[-1]
            ):
                parameter.requires_grad_(False)
        return model.train()

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for parameter in self.policy.parameters() if parameter.requires_grad]

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.workload.device, torch.bfloat16, enabled=self.workload.dtype == "bfloat16"
        )
