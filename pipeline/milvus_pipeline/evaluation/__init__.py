"""Quality, latency and cost of pipelines on judged queries, stage by stage."""

from milvus_pipeline.evaluation.evaluate import evaluate
from milvus_pipeline.evaluation.records import Comparison, Evaluation, Latency, StageFigures, SystemFigures

__all__ = ["Comparison", "Evaluation", "Latency", "StageFigures", "SystemFigures", "evaluate"]
