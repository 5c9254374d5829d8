"""The stages that come with the framework, each a plugin like any third party's.

Importing this module loads no model and no client; a stage imports what it needs when it opens.
"""

from milvus_stages.encode.encoder import Encode
from milvus_stages.milvus.search import MilvusSearch
from milvus_stages.rerank.bge import BGE
from milvus_stages.rerank.cohere import Cohere
from milvus_stages.rerank.cross_encoder import CrossEncoder
from milvus_stages.rerank.jev import Jev
from milvus_stages.rerank.jina import Jina
from milvus_stages.rerank.late_interaction import LateInteraction
from milvus_stages.rerank.mixedbread import Mixedbread
from milvus_stages.rerank.pymilvus_model import PymilvusModel
from milvus_stages.rerank.rerank_api import RerankAPI
from milvus_stages.rerank.tei import TEI
from milvus_stages.rerank.voyage import Voyage
from milvus_stages.truncate.truncate import Truncate

__all__ = [
    "BGE",
    "TEI",
    "Cohere",
    "CrossEncoder",
    "Encode",
    "Jev",
    "Jina",
    "LateInteraction",
    "MilvusSearch",
    "Mixedbread",
    "PymilvusModel",
    "RerankAPI",
    "Truncate",
    "Voyage",
]
