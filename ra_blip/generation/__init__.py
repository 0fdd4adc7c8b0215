"""From questions to answers: the pipeline that searches, ranks, judges and generates."""
