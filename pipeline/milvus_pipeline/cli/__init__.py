"""The command ``milvus-pipeline``: run, ingest, validate, doctor, schema, stages."""

from __future__ import annotations


def main() -> None:
    """Run the command on ``sys.argv`` and exit: 0 done, 1 something failed, 2 bad configuration or usage."""
    from milvus_pipeline.cli.app import app

    app(prog_name="milvus-pipeline")
