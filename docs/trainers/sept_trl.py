"""SePT in TRL 1.16: GRPOTrainer without its reward, its ratio and its temperature in the loss."""

import torch
from datasets import Dataset
from trl import GRPOConfig, GRPOTrainer


class SePTTrainer(GRPOTrainer):
    """A loss of -log p per token on answers of the current weights: every advantage and every ratio is 1."""

    def compute_loss(self, model, inputs, *args, **kwargs):
        inputs = {**inputs, "advantages": torch.ones_like(inputs["advantages"])}
        inputs.pop("old_per_token_logps", None)  # TRL then divides by p itself, held fixed
        return super().compute_loss(model, inputs, *args, **kwargs)


def sept_trainer(model, tokenizer, prompts, out, tau_s=0.6, rounds=120, answers=64, **more):
    """Each round draws 2 answers to each of `answers` / 2 prompts at tau_s and takes one step at tau_t = 1."""
    settings = {
        "temperature": 1.0,  # tau_t: TRL divides the logits of the loss by it too
        "generation_kwargs": {"temperature": tau_s},  # tau_s: what draws, and nothing else
        "top_k": 0,  # the whole softmax, whatever the model's own generation config says
        "top_p": 1.0,
        "num_generations": 2,  # the fewest that TRL allows
        "per_device_train_batch_size": answers,
        "loss_type": "dapo",  # sum over the step's tokens by their number
        "vllm_importance_sampling_correction": False,  # with use_vllm: no factor either
        "max_steps": rounds,
        "learning_rate": 1e-4,
        "lr_scheduler_type": "constant",
        "weight_decay": 0.01,
        "shuffle_dataset": False,  # the prompts in the order in which they come
        "gradient_checkpointing": False,
        "bf16": torch.cuda.is_available(),
    }
    config = GRPOConfig(output_dir=str(out), **{**settings, **more})
    none = [lambda completions, **_: [0.0] * len(completions)]
    return SePTTrainer(
        model, none, config, Dataset.from_dict({"prompt": prompts}), processing_class=tokenizer
    )
