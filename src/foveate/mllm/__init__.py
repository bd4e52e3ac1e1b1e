"""Wing: multimodal language models after MM1.5, from recipe and stages to evaluation suites."""
