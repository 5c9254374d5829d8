"""What a sample of a collection's texts says of the whole, in the words that checks of models and services share."""

from __future__ import annotations


def share_said(count: int, sampled: int, documents: int) -> str:
    """``12 of 200 sampled documents (6 %, about 1,200 in all)``.

    Args:
        count: of the sample, what is told.
        sampled: size of the sample, at least 1.
        documents: how many the collection holds; 0 where that is not known.
    """
    share = count / sampled
    about = f", about {round(share * documents):,} in all" if documents else ""
    return f"{count} of {sampled} sampled documents ({100 * share:.0f} %{about})"
