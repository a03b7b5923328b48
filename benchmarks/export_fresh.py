"""Answer questions with an exported folder as its user would: run outside of the project.

    python export_fresh.py peft|merged FOLDER ASKED.json ANSWERS.json [DTYPE]
    python export_fresh.py gguf MODEL.gguf[+ADAPTER.gguf] ASKED.json ANSWERS.json

ASKED.json holds `conversations` (lists of messages) and `max_tokens`; ANSWERS.json gets the tokens
of each greedy answer, without what ends it.
"""

# pyright: reportAttributeAccessIssue=false
import json
import os
import sys
import traceback
import urllib.request
from pathlib import Path


def by_transformers(kind, folder, asked, dtype):
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(folder)
    base = folder
    if kind == "peft":
        base = json.loads(Path(folder, "adapter_config.json").read_text())[
            "base_model_name_or_path"
        ]
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    if kind == "peft":
        model = PeftModel.from_pretrained(model, folder)
    model.eval()
    config = GenerationConfig.from_pretrained(folder)
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    for messages in asked["conversations"]:
        prompt = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
        )
        answer = model.generate(
            **prompt, generation_config=config, max_new_tokens=asked["max_tokens"], do_sample=False
        )[0, prompt["input_ids"].shape[1] :].tolist()
        yield answer[:-1] if answer and answer[-1] in ends else answer


def by_llama_cpp(files, asked):
    import xllamacpp

    model, _, adapter = files.partition("+")
    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.n_parallel = model, 512, 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.use_jinja, params.port = True, 0
    if adapter:
        params.lora_adapters = [xllamacpp.CommonAdapterLoraInfo(adapter, 1.0)]
    server = xllamacpp.Server(params)  # which ends with this name

    def post(path, **fields):
        body = json.dumps(fields).encode()
        request = urllib.request.Request(
            server.listening_address + path, body, {"Content-Type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))

    for messages in asked["conversations"]:
        prompt = post("/apply-template", messages=messages)["prompt"]
        said = post("/completion", prompt=prompt, n_predict=asked["max_tokens"], temperature=0,
                    return_tokens=True, cache_prompt=False)  # fmt: skip
        tokens = said["tokens"]
        yield tokens[:-1] if said["stop_type"] == "eos" else tokens


kind, folder, asked_file, answers_file, *dtype = sys.argv[1:]
asked = json.loads(Path(asked_file).read_text())
try:
    if kind == "gguf":
        answers = list(by_llama_cpp(folder, asked))
    else:
        usual = "float32" if kind == "peft" else "auto"  # as the card has it
        answers = list(by_transformers(kind, folder, asked, dtype[0] if dtype else usual))
    Path(answers_file).write_text(json.dumps(answers))
except Exception:
    traceback.print_exc()
    sys.stderr.flush()
    os._exit(1)  # llama.cpp's server is a thread of this process, and would go on
os._exit(0)
