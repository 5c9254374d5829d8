"""Quality, latency and cost of pipelines on judged queries, stage by stage."""

from milvus_pipeline.evaluation.evaluate import evaluate
from milvus_pipeline.evaluation.records import Comparison, Evaluation, Latency, StageFigures, SystemFigures
from milvus_pipeline.evaluation.report import report_html, write_report
from milvus_pipeline.evaluation.variants import Variant, systems_of, variants_of
from milvus_pipeline.files.qrels import Qrels, read_qrels

__all__ = [
    "Comparison",
    "Evaluation",
    "Latency",
    "Qrels",
    "StageFigures",
    "SystemFigures",
    "Variant",
    "evaluate",
    "read_qrels",
    "report_html",
    "systems_of",
    "variants_of",
    "write_report",
]
