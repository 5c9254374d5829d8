"""Quality, latency and cost of pipelines on judged queries, stage by stage."""
