"""All that a lane's worker imports, Ray apart: for the process that is forked into workers (cluster/fork_server.py)."""

import importlib

from jobs.hf import import_transformers

# of jobs/worker.py; of DeepSpeed and of ray.train, which import them when they are first used
MODULES = ("jobs.together", "deepspeed.module_inject.auto_ep_layer", "pandas", "pyarrow.json", "pydantic.v1")

import_transformers().LlamaForCausalLM  # noqa: B018  # as is each class of transformers
for name in MODULES:
    importlib.import_module(name)
# of every architecture's checkpoints, compiled when the first one is loaded
importlib.import_module("transformers.conversion_mapping").get_checkpoint_conversion_mapping("llama")
