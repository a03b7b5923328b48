"""Run the service alone, for other Tinker clients on this machine."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m local_tinker",
        description="Serve Tinker's API on 127.0.0.1: LoRA training and sampling of a local model.",
    )
    parser.add_argument(
        "--base-model",
        required=True,
        metavar="MODEL",
        help="a model directory, or the name of a model in the Hugging Face cache",
    )
    parser.add_argument(
        "--port", type=int, default=0, help="port to listen on (default: a free one)"
    )
    parser.add_argument(
        "--checkpoint-dir",
        type=Path,
        default=Path("checkpoints"),
        help="where checkpoints are kept (default: %(default)s)",
    )
    parser.add_argument("--device", help="cpu or cuda (default: cuda where there is one)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_arguments(argv)
    from local_tinker.service import start
    from local_tinker.wire import UserError

    key = os.environ.get("TINKER_API_KEY") or None
    if key is not None and not key.startswith("tml-"):
        print(
            "TINKER_API_KEY must start with tml- (the SDK refuses others); change or unset it.",
            file=sys.stderr,
        )
        return 2
    path = Path(args.base_model)
    resolved = str(path.resolve()) if path.is_dir() else args.base_model
    try:
        service = start(port=args.port)
    except OSError as error:
        print(
            f"cannot listen on port {args.port}: {error.strerror}. Choose another --port.",
            file=sys.stderr,
        )
        return 2
    with service:
        try:
            service.serve_model(args.base_model, resolved, args.device)
        except UserError as error:
            print(str(error), file=sys.stderr)
            return 2
        args.checkpoint_dir.mkdir(parents=True, exist_ok=True)
        made = service.open_folder(args.checkpoint_dir.resolve(), key)
        print(
            f"serving {args.base_model} on {service.base_url}, checkpoints in "
            f"{args.checkpoint_dir}",
            file=sys.stderr,
        )
        print(f"export TINKER_BASE_URL={service.base_url}")
        print(f"export TINKER_API_KEY={made}", flush=True)
        try:
            service.wait()
        except KeyboardInterrupt:
            print("stopping", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
