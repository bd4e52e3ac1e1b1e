"""Foveate's own controllable captioner: frozen visual features, a trained prefix, a small decoder, all formats.

After the two stages of Lai et al. 2024 (format following, then human alignment). Read: recipe, material, rows, model,
task, train, generate.
"""
