"""``python -m milvus_pipeline`` is the command ``milvus-pipeline``."""

from milvus_pipeline.cli import main

if __name__ == "__main__":
    main()
