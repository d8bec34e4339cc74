"""`abc-embed bench audit`: which questions of a set need both the picture and the words?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from abc_embed.cli import options
from abc_embed.cli.output import epilog, print_json, print_message, print_result, print_table

EXAMPLES = epilog("""
  abc-embed bench audit scenes --limit 100
  abc-embed bench audit questions.jsonl --model bundled --model random --out audit

A line of questions.jsonl: {"image": "a.jpg", "instruction": "what is on the left?",
"answer": "a dog", "candidates": ["a dog", "a cat"]}; without candidates, every answer of the file
is one.
""")


@options.with_settings
def audit(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SET", help="A JSONL file, a folder of records or of CtrlBench, or scenes."
        ),
    ],
    model: Annotated[
        list[str],
        typer.Option(
            help="A model of the panel; give it again for more. bundled, a folder, a published "
            "name, st:NAME, open_clip:MODEL/PRETRAINED, late:NAME or random."
        ),
    ] = [options.MODEL],  # noqa: B006  (typer copies it)
    limit: Annotated[
        int | None, typer.Option(min=1, help="Only the first so many questions.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder for audit.json, audit.md and audit.png."),
    ] = None,
    max_pixels: options.MaxPixels = None,
    *,
    settings: options.EncoderSettings,
    as_json: options.AsJson = False,
) -> None:
    """Count the questions that the image alone solves, the words alone, or the sum of both vectors.

    What is left over needs a model that reads the picture and the words together.
    """
    area = None if max_pixels is None else options.area_in_pixels(max_pixels)
    from abc_embed.bench.audit import tables as audit_table
    from abc_embed.bench.audit.measure import audit as run_audit
    from abc_embed.bench.audit.questions import read_audit_set
    from abc_embed.storage.files import make_folder

    if out is not None:
        make_folder(out)
    questions = read_audit_set(source, limit=limit)
    panel = [settings.load_encoder(name) for name in dict.fromkeys(model)]
    findings = run_audit(
        panel, questions, max_pixels=area, cache=settings.cache, progress=not as_json
    )
    if as_json:
        print_json(findings)
    else:
        print_table(audit_table.HEAD, audit_table.rows(findings))
        print_result(audit_table.summary(findings))
    if out is not None:
        _write(findings, out)
        print_message(f"the audit is in {out}")


def _write(findings: dict[str, Any], out: Path) -> None:
    from abc_embed.bench.audit import tables as audit_table
    from abc_embed.storage.files import atomic_write
    from abc_embed.storage.json_files import atomic_write_json

    atomic_write_json(out / "audit.json", findings)
    with atomic_write(out / "audit.md") as file:
        file.write(audit_table.markdown(findings).encode())
    audit_table.draw_bars(findings, out / "audit.png")
