"""`surgery-workbench`: build the page and serve it on this computer."""

from __future__ import annotations

import argparse
import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

MAX_UPLOAD = "1gb"


def main(argv: Sequence[str] | None = None) -> int:
    """Start the workbench; returns when it is stopped."""
    from surgery.errors import SurgeryError

    args = _parse(argv)
    try:
        credentials = _credentials(args.auth)
        quiet_environment()
        from ui.session import BENCH

        if args.base:
            print(f"loading {args.base}", file=sys.stderr)
            BENCH.open(args.base)
        demo = page(BENCH)
        demo.launch(
            server_name=args.host,
            server_port=args.port,
            auth=credentials,
            inbrowser=args.browser,
            quiet=True,
            prevent_thread_lock=True,
            **launch_options(),
        )
    except (SurgeryError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    print(f"surgery workbench at {demo.local_url}", file=sys.stderr, flush=True)
    demo.block_thread()
    return 0


def page(bench: Any) -> Any:
    """The whole page as Gradio blocks, for a bench."""
    import gradio as gr

    from ui.screens import checkpoint, compare_sides, damage, edit, inside, models, shell, takeaway

    with gr.Blocks(
        title="surgery", analytics_enabled=False, delete_cache=(3600, 86400), fill_width=True
    ) as demo:
        header = shell.header_bar(bench)
        with gr.Row(elem_id="frame", equal_height=False):
            with gr.Column(elem_id="side", scale=0, min_width=300):
                side = shell.side_panel(bench, header)
            with (
                gr.Column(elem_id="main", scale=1, min_width=320),
                gr.Tabs(elem_id="screens") as tabs,
            ):
                with gr.Tab("Checkpoint", id="checkpoint"):
                    checkpoint.build(bench, side)
                with gr.Tab("Look inside", id="inside"):
                    looked = inside.build(bench)
                with gr.Tab("Edit", id="edit"):
                    form = edit.build(bench, side)
                with gr.Tab("Before and after", id="sides"):
                    compare_sides.build(bench)
                with gr.Tab("Damage", id="damage"):
                    report = damage.build(bench)
                with gr.Tab("Compare models", id="models"):
                    models.build(bench)
                with gr.Tab("Take away", id="takeaway"):
                    takeaway.build(bench, report)
        inside.wire_layer(looked, form, tabs)
        demo.load(side.show, None, side.outputs, api_name="loaded", **shell.HIDDEN)
    demo.queue(default_concurrency_limit=1, max_size=64)
    return demo


def launch_options() -> dict[str, Any]:
    """Everything about serving that is not up to the user: local, quiet, and no files but exports."""
    from ui.actions.places import export_folder
    from ui.theme import STYLE, theme

    return {
        "share": False,
        "show_error": True,
        "enable_monitoring": False,
        "run_history": False,
        "ssr_mode": False,
        "pwa": False,
        "mcp_server": False,
        "footer_links": [],
        "max_file_size": MAX_UPLOAD,
        "allowed_paths": [str(export_folder())],
        "strict_cors": True,
        "theme": theme(),
        "css_paths": [STYLE],
    }


def quiet_environment() -> None:
    """No analytics, no version check, and uploads in a folder of our own. Before gradio is imported."""
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if "GRADIO_TEMP_DIR" not in os.environ:
        folder = tempfile.mkdtemp(prefix="surgery-workbench-")
        os.environ["GRADIO_TEMP_DIR"] = folder
        atexit.register(shutil.rmtree, folder, ignore_errors=True)


def _credentials(text: str | None) -> tuple[str, str] | None:
    from surgery.errors import SurgeryError

    if text is None:
        return None
    name, colon, password = text.partition(":")
    if not (name and colon and password):
        raise SurgeryError("--auth needs USER:PASSWORD")
    return name, password


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="surgery-workbench",
        description="Edit a language model in the browser: see before and after, side by side.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--base", metavar="DIR", type=Path, help="a checkpoint to load at the start"
    )
    parser.add_argument(
        "--port", metavar="N", type=int, help="port (default: 7860, or the next free)"
    )
    parser.add_argument(
        "--host",
        metavar="ADDRESS",
        default="127.0.0.1",
        help="address to listen on; anything but this computer needs --auth",
    )
    parser.add_argument("--auth", metavar="USER:PASSWORD", help="ask for a name and a password")
    parser.add_argument("--browser", action="store_true", help="open a browser window")
    args = parser.parse_args(argv)
    if args.host not in ("127.0.0.1", "localhost", "::1") and not args.auth:
        parser.error("--host opens the workbench to others: give --auth too")
    return args


if __name__ == "__main__":
    raise SystemExit(main())
