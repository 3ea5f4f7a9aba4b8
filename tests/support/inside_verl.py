"""Programs for verl's own interpreter, with its real code: they print what cropi's tests compare.

`rows FOLDER [OVERRIDE ...]`: the data set and the reward manager on a stage's files. `shards MODEL
OUT`: a checkpoint as the trainer saves it, by each of the processes of torchrun.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

PRINTED = ("trainer.project_name", "data.train_files", "trainer.logger")


def rows(folder: str, overrides: list[str]) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import load_reward_manager
    from verl.trainer.ppo.utils import create_rl_dataset, create_rl_sampler
    from verl.utils import hf_tokenizer

    from cropi.training.verl_check import composed

    config = composed(overrides)
    tokenizer = hf_tokenizer(config.actor_rollout_ref.model.path)
    data = create_rl_dataset(config.data.train_files, config.data, tokenizer, None, is_train=True)
    order = [data[place] for place in create_rl_sampler(config.data, data)]
    manager = load_reward_manager(config, tokenizer)
    template = dict(config.data.apply_chat_template_kwargs)
    return {
        "ids": [row["reward_model"]["ground_truth"] for row in order],
        "tokens": [
            tokenizer.apply_chat_template(
                row["raw_prompt"],
                add_generation_prompt=True,
                tokenize=True,
                return_dict=False,
                **template,
            )
            for row in order
        ],
        "rewards": [judged(manager, tokenizer, row, text) for row in order for text in ("4", "no")],
        "config": {key: OmegaConf.select(config, key) for key in PRINTED[:2]},
    }


def judged(manager: Any, tokenizer: Any, row: dict[str, Any], text: str) -> Any:
    import numpy as np
    import torch
    from verl import DataProto

    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt")["input_ids"]
    single = {name: row[name] for name in ("data_source", "reward_model", "extra_info")}
    data = DataProto.from_dict(
        tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
        non_tensors={name: np.array([value], dtype=object) for name, value in single.items()},
    )
    result = asyncio.get_event_loop().run_until_complete(manager.run_single(data))
    return [result["reward_score"], result["reward_extra_info"]["unjudged"]]


def shards(model: str, out: str) -> dict[str, Any]:
    import torch
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FullyShardedDataParallel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager

    torch.distributed.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (torch.distributed.get_world_size(),), mesh_dim_names=("fsdp",))
    policy = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    sharded = FullyShardedDataParallel(policy, device_mesh=mesh, device_id=torch.device("cpu"))
    optimizer = torch.optim.AdamW(sharded.parameters(), lr=0.1)
    sharded(input_ids=torch.tensor([[5, 6, 7]])).logits.sum().backward()
    optimizer.step()
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer)
    tokenizer = AutoTokenizer.from_pretrained(model)
    manager = FSDPCheckpointManager(sharded, optimizer, schedule, tokenizer)
    manager.save_checkpoint(out, global_step=1)
    with FullyShardedDataParallel.summon_full_params(sharded):
        whole = {name: weight.detach().clone() for name, weight in policy.named_parameters()}
    if torch.distributed.get_rank() == 0:
        torch.save(whole, Path(out) / "whole.pt")
    torch.distributed.destroy_process_group()
    return {}


if __name__ == "__main__":
    name, first, *rest = sys.argv[1:]
    answer = rows(first, rest) if name == "rows" else shards(first, *rest)
    print(json.dumps(answer), flush=True)
