"""The stages that come with the framework, each a plugin like any third party's.

Importing this module loads no model and no client; a stage imports what it needs when it opens.
"""

from milvus_stages.encode.encoder import Encode
from milvus_stages.rerank.bge import BGE
from milvus_stages.rerank.cross_encoder import CrossEncoder
from milvus_stages.rerank.late_interaction import LateInteraction
from milvus_stages.retrieve.milvus import MilvusSearch
from milvus_stages.truncate.truncate import Truncate

__all__ = ["BGE", "CrossEncoder", "Encode", "LateInteraction", "MilvusSearch", "Truncate"]
