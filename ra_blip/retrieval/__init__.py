"""From a knowledge base to hits: embed, index, search, rerank. A model is seen only through its methods."""
