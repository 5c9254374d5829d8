"""Retrieval jobs: many queries from a file, through a pipeline, into a file; resumable."""

from milvus_pipeline.errors import InputError
from milvus_pipeline.jobs.claim import ResumeError
from milvus_pipeline.jobs.figures import Figures, StageTotals
from milvus_pipeline.jobs.formats import JsonLines, OutputError, OutputFormat, TrecRun
from milvus_pipeline.jobs.job import run_job
from milvus_pipeline.jobs.manifest import Manifest, manifest_path, read_manifest
from milvus_pipeline.jobs.outcome import JobProgress, JobReport, StoppedError
from milvus_pipeline.jobs.queries import BadLines, InputFormat, read_queries, survey

__all__ = [
    "BadLines",
    "Figures",
    "InputError",
    "InputFormat",
    "JobProgress",
    "JobReport",
    "JsonLines",
    "Manifest",
    "OutputError",
    "OutputFormat",
    "ResumeError",
    "StageTotals",
    "StoppedError",
    "TrecRun",
    "manifest_path",
    "read_manifest",
    "read_queries",
    "run_job",
    "survey",
]
