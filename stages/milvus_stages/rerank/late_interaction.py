"""Late interaction: the token vectors of query and document, compared one by one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field, PrivateAttr

from milvus_pipeline import DeadlineError, QueryError
from milvus_pipeline.plugin import RerankJob
from milvus_stages.local.anytime import Clock, Scores, late_error, run_texts_best_first
from milvus_stages.local.files import model_error, module_list
from milvus_stages.local.models import Kind, ModelFiles, ModelName, max_length_of
from milvus_stages.local.pair_reranker import LocalReranker, by_rank, warn_of_cuts
from milvus_stages.local.tokens import Tokens

if TYPE_CHECKING:
    import torch

NO_TOKENS = -1.0
"""Score of a document without tokens: the lowest cosine, and so the lowest score."""


class LateInteraction(LocalReranker):
    """Scores by MaxSim over the token vectors of an encoder, from -1 to 1.

    For each token of the query, the largest cosine with a token of the document counts; the score is the mean over the
    query's tokens. ColBERT's MaxSim (Khattab and Zaharia, 2020, https://arxiv.org/abs/2004.12832, section 3.3) takes
    the sum; the mean orders the documents of a query in the same way and does not grow with the query's length.
    Special tokens are encoded but not compared. A document without tokens gets -1.
    """

    type: ClassVar[str] = "late_interaction"
    kind: ClassVar[Kind] = "encoder"

    model: ModelName = "sentence-transformers/all-MiniLM-L6-v2"
    max_length: Annotated[
        int | None, Field(ge=1, description="Tokens of a document, with special tokens; the model's by default.")
    ] = None
    query_max_length: Annotated[
        int | None, Field(ge=1, description="Tokens of a query, with special tokens; the model's by default.")
    ] = None

    # Tokens that a query and a document may have, special tokens not counted.
    _query_tokens: int = PrivateAttr(default=0)
    _text_tokens: int = PrivateAttr(default=0)

    def prepare(self, files: ModelFiles) -> None:
        """Determine how long texts may be."""
        for kind, _ in (module_list(files.folder) or [])[1:]:
            # Pooling and later modules turn a text into one vector; any other module would change the token vectors.
            if kind == "Pooling":
                break
            raise model_error(f"{self.model!r} has a module {kind!r} after the transformer, which is not supported")
        specials = files.tokenizer.specials
        self._query_tokens = max_length_of(files, self.query_max_length, specials, "query_max_length") - specials
        self._text_tokens = max_length_of(files, self.max_length, specials) - specials

    def document_room(self, query: int) -> int:
        """Return the tokens of a document that are read, which do not depend on the query."""
        return self._text_tokens

    def score_into(self, scores: Scores, jobs: Sequence[RerankJob], clock: Clock) -> None:
        """Encode each query and each distinct document once, and compare a document as soon as it is encoded."""
        import torch

        queries = self._encode_queries(jobs, clock)
        texts = list(dict.fromkeys(by_rank([jobs[number].texts for number in queries])))
        places = defaultdict(list)  # of the scores of a text: the number of a job, and the place in its texts
        for number in sorted(queries):
            for place, text in enumerate(jobs[number].texts):
                places[text].append((number, place))
        cut = [0] * len(jobs)

        def compare(batch: Mapping[int, Tokens]) -> None:
            vectors = self._vectors(batch, clock)
            found = [maxsim([queries[job] for job, _ in places[texts[own]]], vectors[own]) for own in vectors]
            values = iter(torch.cat(found).tolist() if found else ())
            for own, tokens in batch.items():  # a text without tokens has no vectors
                for number, place in places[texts[own]]:
                    scores[number][place] = next(values) if own in vectors else NO_TOKENS
                    cut[number] += tokens.cut

        try:
            run_texts_best_first(self.loaded.tokenizer, texts, self._text_tokens, compare, self.batch_size, clock)
        finally:
            for number in queries:
                warn_of_cuts(False, cut[number], len(jobs[number].texts), clock.context, number)

    def _encode_queries(self, jobs: Sequence[RerankJob], clock: Clock) -> dict[int, torch.Tensor]:
        """The vectors of each query by its number. Queries may take half of the time; the rest is for the documents.

        Raises:
            DeadlineError: all of the time is used up.
        """
        vectors: dict[int, torch.Tensor] = {}
        context, left = clock.context, clock.deadline.remaining()
        half = Clock(context, clock.deadline.sooner(None if left is None else left / 2))

        def encode(batch: Mapping[int, Tokens]) -> None:
            vectors.update(self._vectors(batch, half))
            for number, tokens in batch.items():
                warn_of_cuts(tokens.cut, 0, 0, context, number)
                if not tokens.ids:
                    context.fail(number, QueryError("the query has no token that the model knows", "rephrase it"))

        queries = [job.query for job in jobs]
        try:
            run_texts_best_first(self.loaded.tokenizer, queries, self._query_tokens, encode, self.batch_size, half)
        except DeadlineError:
            clock.check()
        for number in range(len(jobs)):
            if number not in vectors:  # the first failure of a query counts
                context.fail(number, late_error("the query was not encoded", context.deadline))
        return vectors

    def _vectors(self, batch: Mapping[int, Tokens], clock: Clock) -> dict[int, torch.Tensor]:
        """Unit vectors ``(tokens, hidden)`` of the texts' own tokens by number; texts without tokens are left out."""
        import torch

        texts = {number: tokens.ids for number, tokens in batch.items() if tokens.ids}
        if not texts:
            return {}
        tokenizer = self.loaded.tokenizer
        output, _ = self.loaded.forward([tokenizer.row(ids) for ids in texts.values()], clock)
        hidden = torch.nn.functional.normalize(output.last_hidden_state.float(), dim=-1)
        start = tokenizer.text_start
        return {number: own[start : start + len(ids)] for (number, ids), own in zip(texts.items(), hidden, strict=True)}


def maxsim(queries: Sequence[torch.Tensor], tokens: torch.Tensor) -> torch.Tensor:
    """Return the scores of one document for several queries.

    Args:
        queries: unit vectors ``(tokens, hidden)`` of each query, at least one.
        tokens: unit vectors ``(tokens, hidden)`` of the document.

    Returns:
        ``(len(queries),)``: the mean over a query's tokens of the largest cosine of each.
    """
    import torch

    best = (torch.cat(list(queries)) @ tokens.T).amax(dim=1)
    return torch.stack([part.mean() for part in torch.split(best, [len(query) for query in queries])])
