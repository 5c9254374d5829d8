"""What a reranker on HTTP is made of; the public face for plugins that are one.

Subclass ``HostedReranker``, name the endpoint and the key, and write ``payload``.
"""

from milvus_stages.hosted.plan import Limits, estimated_tokens
from milvus_stages.hosted.replies import BadReply, Received, Reply, counted, listed, members
from milvus_stages.hosted.reranker import BaseURL, HostedReranker, HostedRetry
from milvus_stages.privacy.secrets import FromEnv

__all__ = [
    "BadReply",
    "BaseURL",
    "FromEnv",
    "HostedReranker",
    "HostedRetry",
    "Limits",
    "Received",
    "Reply",
    "counted",
    "estimated_tokens",
    "listed",
    "members",
]
