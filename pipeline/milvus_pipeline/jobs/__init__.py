"""Retrieval jobs: many queries from a file, through a pipeline, into a file; resumable."""

from milvus_pipeline.errors import InputError
from milvus_pipeline.files.queries import BadLines, InputFormat, read_queries, survey
from milvus_pipeline.files.results import JsonLines, OutputError, OutputFormat, TrecRun
from milvus_pipeline.jobs.claim import ResumeError
from milvus_pipeline.jobs.job import JobProgress, JobReport, StoppedError, run_job
from milvus_pipeline.jobs.manifest import Figures, Manifest, StageTotals, manifest_path, read_manifest

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
