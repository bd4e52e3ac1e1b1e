"""Foveate's own controllable captioner: frozen visual features, a trained prefix, a small decoder, all formats.

After the two stages of Lai et al. 2024 (format following, then human alignment). Its targets are made in
`caption.targets`. Read in this order: recipe, model, samples, task, train, generate.
"""
