"""A real Apache Kafka for demos and tests, and the administration of its topics."""
