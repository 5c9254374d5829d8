"""What authors of hosted rerankers build on.

Subclass ``HostedReranker``, name the endpoint and the variable of the key, and write ``payload``.
"""

from milvus_stages.hosted.plan import Limits, estimated_tokens
from milvus_stages.hosted.replies import BadReply, Received, Reply, get_member, read_figures, read_scores
from milvus_stages.hosted.reranker import HostedReranker
from milvus_stages.hosted.service import BaseURL, HostedRetry, HostedService
from milvus_stages.privacy.secrets import FromEnv

__all__ = [
    "BadReply",
    "BaseURL",
    "FromEnv",
    "HostedReranker",
    "HostedRetry",
    "HostedService",
    "Limits",
    "Received",
    "Reply",
    "estimated_tokens",
    "get_member",
    "read_figures",
    "read_scores",
]
