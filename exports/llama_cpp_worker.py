"""A process that is llama.cpp's server for one GGUF file, and ends with the process that asked.

It imports nothing of the project. One line of JSON on its standard input says what to load; its
address is the one line on its standard output; llama.cpp's own words go to its standard error.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
from typing import Any


def serve() -> None:
    asked = json.loads(sys.stdin.readline())
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # llama.cpp may write to either
    # Optional, and without types.
    xllamacpp: Any = importlib.import_module("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = asked["gguf"]
    if asked["adapter"] is not None:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(asked["adapter"], 1.0)]
    params.n_ctx = asked["context"]
    params.n_batch = params.n_ubatch = min(asked["context"], 512)
    params.n_parallel = 1
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = asked["num_threads"]
    params.n_gpu_layers = 0
    # As exact as it can be had: what is compared are log-probabilities.
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.cache_prompt = False
    params.cache_ram_mib = 0
    params.warmup = False
    params.use_jinja = True
    params.fit_params = False
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [asked["key"]]
    server = xllamacpp.Server(params)
    answers.write(json.dumps({"address": server.listening_address}) + "\n")
    answers.flush()
    sys.stdin.read()  # until whoever asked closes it, or is no more
    os._exit(0)  # without llama.cpp's own farewell, which may hang or crash


if __name__ == "__main__":
    serve()
