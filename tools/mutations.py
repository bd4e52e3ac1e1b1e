"""Measure what the fast tests of each room catch: one-line changes of the code, applied one at a time to a copy.

    python tools/mutations.py                  every room; hours on two cores
    python tools/mutations.py metrics survey   these rooms
    python tools/mutations.py --check          only whether each line is found exactly once

Prints a table with the first test that failed, or `not caught`; ends with status 1 where a line is not found exactly
once in its room, or where the tests of a room fail without any change.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The laboratory is one room here; its tests are in tests/labs.
LABS = "labs"
TIMEOUT = 120  # seconds of one test: a change may make a loop endless


@dataclass(frozen=True)
class Mutation:
    """A change of one line.

    Attributes:
        room: top-level package, in which the line is searched: modules may move within it.
        old: the whole line without its indentation, found exactly once in the room.
        new: what takes its place.
        tests: names of the test modules that run first; the whole room follows where they catch nothing, or are gone.
    """

    room: str
    old: str
    new: str
    tests: tuple[str, ...] = ()


def parse_rows(text: str) -> Iterator[Mutation]:
    """Yield the mutations of `ROWS`: a room and its test modules, and below it pairs of lines with - and +."""
    room, tests, old = "", (), ""
    for line in filter(None, map(str.strip, text.splitlines())):
        mark, content = line[:2], line[2:]
        if mark == "# ":
            room, *names = content.split()
            tests = tuple(names)
        elif mark == "- ":
            old = content
        else:
            assert mark == "+ ", line
            yield Mutation(room, old, content, tests)


ROWS = r"""
# core test_seeds test_labels test_files
- return sorted(order[:limit].tolist())
+ return order[:limit].tolist()
- if len(counts) < len(ids):
+ if len(counts) > len(ids):
- if array.ndim == 1 and (array.size == 0 or array.dtype.kind in ("iu" if numbers else "USiub")):
+ if array.ndim == 1 and (array.size == 0 or array.dtype.kind in ("USiub" if numbers else "iu")):
- whole = np.isfinite(array).all() and (array == np.floor(array)).all()
+ whole = np.isfinite(array).all() or (array == np.floor(array)).all()
- temporary = path.with_name(f".{path.name}.{os.urandom(16).hex()}.tmp")
+ temporary = path.with_name(f".{path.name}.tmp")
- if part.isdecimal() and int(part) < len(entries):
+ if part.isdecimal() and int(part) <= len(entries):

# chat test_batching test_client
- middle = len(requests) // 2
+ middle = len(requests) // 2 + 1
- fits = len(batch) < self._max_batch and self._group_by(call.request) == group
+ fits = len(batch) <= self._max_batch and self._group_by(call.request) == group
- return sum(self._group_by(call.request) == group for call in self._waiting) >= self._max_batch
+ return sum(self._group_by(call.request) != group for call in self._waiting) >= self._max_batch
- return min(max(when - time.time(), 0.0), _MAX_WAIT_SECONDS)
+ return max(when - time.time(), 0.0)
- if (isinstance(refusal, str) and refusal) or reason == "content_filter":
+ if isinstance(refusal, str) and refusal and reason == "content_filter":
- if endpoint.paused_until <= now and endpoint.in_flight < int(endpoint.limit)
+ if endpoint.paused_until <= now and endpoint.in_flight <= int(endpoint.limit)

# records test_geometry test_boxes test_splits
- return self.width * input_height >= self.height * input_width
+ return self.width * input_height <= self.height * input_width
- return ((as_boxes(boxes_R4) - shift_4) / scale_4).clip(0.0, 1.0)
+ return ((as_boxes(boxes_R4) + shift_4) / scale_4).clip(0.0, 1.0)
- corners = PixelBox(box.x, box.y, box.x + box.width, box.y + box.height)
+ corners = PixelBox(box.x, box.y, box.x + box.height, box.y + box.width)
- if x2 <= x1:
+ if x2 < x1:
- if abs(total - 1) > 1e-6:
+ if total - 1 > 1e-6:
- equal = hashes_N[order][1:] == hashes_N[order][:-1]
+ equal = hashes_N[order][1:] != hashes_N[order][:-1]

# metrics test_retrieval test_grounding test_calibration
- per_sample_N = (self.better_N < k).astype(np.float64)
+ per_sample_N = (self.better_N <= k).astype(np.float64)
- return 1.0 - miss_N
+ return miss_N
- outside = np.flatnonzero((columns < 0) | (columns >= candidates))
+ outside = np.flatnonzero((columns < 0) | (columns > candidates))
- return np.array(SIZE_NAMES)[np.digitize(areas(boxes_R4), (small_below, large_from))]
+ return np.array(SIZE_NAMES)[np.digitize(areas(boxes_R4), (small_below, large_from), right=True)]
- return (logits_nC > true_n1) | ((logits_nC == true_n1) & (np.arange(logits_nC.shape[1]) < label_n1))
+ return (logits_nC > true_n1) | ((logits_nC == true_n1) & (np.arange(logits_nC.shape[1]) > label_n1))
- resolution = 4 * float(np.spacing(largest))
+ resolution = 0.0

# survey test_survey_golden_times test_camtrap_dp test_camtrap_dp_export
- sign_N = np.where(_equals(groups.field("sign"), "-"), -1.0, 1.0)
+ sign_N = np.where(_equals(groups.field("sign"), "-"), 1.0, -1.0)
- in_day_N = (parts["hour"] < 24) & (parts["minute"] < 60) & (parts["second"] < 60)
+ in_day_N = (parts["hour"] <= 24) & (parts["minute"] < 60) & (parts["second"] < 60)
- wall_N = days_N * DAY + parts["hour"] * 3600.0 + parts["minute"] * 60 + parts["second"]
+ wall_N = days_N * DAY + parts["hour"] * 3600.0 + parts["minute"] * 60
- return np.where(convert_N, clock_N - times.offset_N + place_offset_N, clock_N)
+ return np.where(convert_N, clock_N + times.offset_N - place_offset_N, clock_N)
- if match is None or seconds > _MAX_OFFSET or int(match["minute"] or 0) > 59:
+ if match is None or seconds >= _MAX_OFFSET or int(match["minute"] or 0) > 59:
- months_N = ((year_N - 1970) * 12 + np.clip(month_N, 1, 12) - 1).astype("datetime64[M]")
+ months_N = ((year_N - 1970) * 12 + np.clip(month_N, 1, 12)).astype("datetime64[M]")

# vision test_prompter test_connectors test_mm15_golden_tiling test_tiling_against_transformers
- return torch.cat((torch.minimum(first, second), torch.maximum(first, second)), dim=-1)
+ return torch.cat((torch.maximum(first, second), torch.minimum(first, second)), dim=-1)
- return scores.to(_exact(scores.dtype)) / math.sqrt(self.width)
+ return scores.to(_exact(scores.dtype)) / self.width
- num_tokens = rows * columns // factor**2
+ num_tokens = rows * columns // factor
- return F.silu(x_BHWD + layer_norm(y, self.ln3))
+ return F.silu(x_BHWD - layer_norm(y, self.ln3))
- return self.tiles.resized.height >= self.size.height and self.tiles.resized.width >= self.size.width
+ return self.tiles.resized.height >= self.size.height or self.tiles.resized.width >= self.size.width
- good_R = inside & (boxes_R4[:, 2] > boxes_R4[:, 0]) & (boxes_R4[:, 3] > boxes_R4[:, 1])
+ good_R = inside & (boxes_R4[:, 2] > boxes_R4[:, 0])

# language test_packing test_sparse test_lora test_vocabulary
- same_BLL = (number_BL[:, :, None] == number_BL[:, None]) | (number_BL[:, None] == 0)
+ same_BLL = number_BL[:, :, None] == number_BL[:, None]
- factor = 1.0 if options.alpha is None else options.alpha / options.rank
+ factor = 1.0 if options.alpha is None else options.rank / options.alpha
- first_TE = first_TE * (first_TE.cumsum(0) <= capacity)
+ first_TE = first_TE * (first_TE.cumsum(0) < capacity)
- second_TE = second_TE * (second_TE.cumsum(0) + first_TE.sum(0) <= capacity)
+ second_TE = second_TE * (second_TE.cumsum(0) <= capacity)
- return _widen(logits_TE).logsumexp(-1).square().mean()
+ return _widen(logits_TE).logsumexp(-1).mean()
- usable = [name for name, count in uses.items() if count >= 2 and name not in unclear]
+ usable = [name for name, count in uses.items() if count >= 2]

# training test_schedule test_order test_mixture test_augment test_linear_probe
- return min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
+ return min(1.0, step / warmup_steps) if warmup_steps else 1.0
- return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress))
+ return final + (1 - final) * 0.5 * (1 - math.cos(math.pi * progress))
- first = step * batch_size + rank * share
+ first = step * batch_size + rank
- if self.missing == "error" and len(present) < len(weighted):
+ if self.missing == "error" and len(present) > len(weighted):
- flip = bool(generator.random() < self.flip) and may_flip and not names_a_side(texts)
+ flip = bool(generator.random() < self.flip) and may_flip
- return min(decay, (1 + step) / (10 + step))
+ return max(decay, (1 + step) / (10 + step))

# multimodal test_assemble test_referring test_choosing_and_grounding
- split = len(sizes) <= options.max_split_images
+ split = len(sizes) < options.max_split_images
- return len(self.views) * self.options.tokens_per_view
+ return len(self.images) * self.options.tokens_per_view
- inside_N2 = (points_N2 - (crop_x1, crop_y1)) / (crop_x2 - crop_x1, crop_y2 - crop_y1)
+ inside_N2 = (points_N2 - (crop_y1, crop_x1)) / (crop_x2 - crop_x1, crop_y2 - crop_y1)
- complete_BT = (ids_BT == SLOT).cumsum(dim=1) // tokens_per_view
+ complete_BT = (ids_BT == SLOT).cumsum(dim=1) // tokens_per_view + 1
- if len(texts) < 2 or len(set(texts)) < len(texts):
+ if len(texts) < 2:
- logs_N = logs_NV.gather(1, texts.ids_BT[:, 1:][is_target_BT][:, None])[:, 0]
+ logs_N = logs_NV.gather(1, texts.ids_BT[:, :-1][is_target_BT][:, None])[:, 0]

# caption test_length_filters test_captions_golden_lengths test_captions_golden_entities test_audit
- if limits.cut and count_clip_tokens(caption) > limits.max_tokens:
+ if limits.cut and count_clip_tokens(caption) >= limits.max_tokens:
- excess = max(limits.min_tokens - tokens, tokens - limits.max_tokens, 0)
+ excess = max(tokens - limits.max_tokens, 0)
- return max(counts.values(), default=0) >= 3
+ return max(counts.values(), default=0) > 3
- return sum(token in _FOREIGN_WORDS for token in tokens) > sum(token in _ENGLISH_WORDS for token in tokens)
+ return sum(token in _FOREIGN_WORDS for token in tokens) < sum(token in _ENGLISH_WORDS for token in tokens)
- if tokens and tokens[0] in DETERMINERS:
+ if tokens and tokens[-1] in DETERMINERS:
- if len(text) > 1 and text[0] == opening and text[-1] == closing:
+ if len(text) > 1 and text[0] == opening:

# pretrain test_losses test_cloc_golden_losses test_sigmoid test_evaluate
- return sum_with_grad((row_B + column_B).sum() / (2 * len(text_NE)))
+ return sum_with_grad((row_B + column_B).sum() / len(text_NE))
- row_B = (row_max_B - diagonal_B) + row_log_B
+ row_B = (row_max_B - diagonal_B) - row_log_B
- d_logits += (logits - column_max_R).sub_(column_log_R).exp_().mul_(d_column_R)
+ d_logits -= (logits - column_max_R).sub_(column_log_R).exp_().mul_(d_column_R)
- logits_BN = scale * similarity_BN + bias
+ logits_BN = scale * similarity_BN - bias
- mask = duplicates.mask(slice(first + rows.start, first + rows.stop))
+ mask = duplicates.mask(slice(rows.start, rows.stop))
- selected = np.flatnonzero(mask_R & _phrases_once(self.embeddings) & (counts > 1))
+ selected = np.flatnonzero(mask_R & (counts > 1))

# search test_nearest test_search test_locate test_floor
- queries = queries / np.linalg.norm(queries, axis=1, keepdims=True)
+ queries = queries / np.linalg.norm(queries, axis=0, keepdims=True)
- order = np.argsort(-scores, kind="stable")[:count]
+ order = np.argsort(scores, kind="stable")[:count]
- factors = {name: (-1 if name == "negative" else 1) * query.weights.get(name, 1.0) for name in vectors}
+ factors = {name: query.weights.get(name, 1.0) for name in vectors}
- score_C = z_C + text_weight * text_C if calibrated else cosine_C
+ score_C = z_C + text_C if calibrated else cosine_C
- return (x1 * self.width, y1 * self.height, x2 * self.width, y2 * self.height)
+ return (x1 * self.height, y1 * self.width, x2 * self.height, y2 * self.width)
- variance = sum((factor * std) ** 2 for factor, _, std in known)
+ variance = sum(factor * std**2 for factor, _, std in known)

# mllm test_samples test_dense test_suites test_stages test_ferret_golden_stages
- if length > self.max_positions:
+ if length >= self.max_positions + 2:
- if others and seeds.uniform("replay", seed, epoch, row) < self.replay:
+ if others and seeds.uniform("replay", seed, epoch, row) > self.replay:
- return (boxes_N4 - targets_N4).abs().sum(dim=1) + giou_N, iou_N
+ return (boxes_N4 - targets_N4).abs().sum(dim=1) - giou_N, iou_N
- return PixelBox(box.x1 * across, box.y1 * down, box.x2 * across, box.y2 * down)
+ return PixelBox(box.x1 * down, box.y1 * across, box.x2 * down, box.y2 * across)
- return f"[{', '.join(str(min(max(number, 0), NUM_BINS - 1)) for number in bins)}]"
+ return f"[{', '.join(str(min(max(number, 0), NUM_BINS)) for number in bins)}]"
- map_LD = resize_positions(flat_LD[None, prefix:], grid=grid, new_grid=new_grid)[0]
+ map_LD = resize_positions(flat_LD[None, prefix:], grid=new_grid, new_grid=new_grid)[0]

# video test_strategies test_aggregate test_occlusion test_slowfast_golden_aggregate
- end = len(tokens_ND) // 2 * 2
+ end = len(tokens_ND) // 2
- return [range(index * count // self.bins, -(-(index + 1) * count // self.bins)) for index in range(self.bins)]
+ return [range(index * count // self.bins, (index + 1) * count // self.bins) for index in range(self.bins)]
- if not image_tokens or side * side != image_tokens:
+ if not image_tokens:
- outside = [index for index in slow_indices if not 0 <= index < num_frames]
+ outside = [index for index in slow_indices if not 0 <= index <= num_frames]
- columns = round(num_frames**0.5)
+ columns = round(num_frames**0.5) + 1
- drops = dict(zip(rows_of_index, (scores[0] - score for score in scores[1:]), strict=True))
+ drops = dict(zip(rows_of_index, (score - scores[0] for score in scores[1:]), strict=True))

# adapt test_matrix test_families test_petl_golden_methods test_petl_golden_wise
- return 1.0 if self.scale == "one" or self.alpha is None else self.alpha / self.rank
+ return 1.0 if self.scale == "one" or self.alpha is None else self.rank / self.alpha
- return output * scale.to(output.dtype).view(shape) + shift.to(output.dtype).view(shape)
+ return output * scale.to(output.dtype).view(shape) - shift.to(output.dtype).view(shape)
- return z_BLD + high * (self.scale * strength)
+ return high * (self.scale * strength)
- return hook_output(module, lambda output, _: output[:, :-count])
+ return hook_output(module, lambda output, _: output[:, count:])
- return eye + factor * (b @ a), factor * (b @ upcast(self.a_bias) + upcast(self.b_bias))
+ return eye + factor * (b @ a), factor * (b @ upcast(self.a_bias))
- return slice(number * size, (number + 1) * size) if of > 1 else slice(None)
+ return slice(None)

# calibrate test_calibrator test_calibration_golden_glyph test_absent_classes test_fold
- return np.sort(order[:half]), np.sort(order[half:])
+ return np.sort(order[half:]), np.sort(order[:half])
- return group_accuracies(source, labels, groups)["U/Y"]
+ return group_accuracies(source, labels, groups)["S/Y"]
- return PseudoEstimate(float(np.mean(feasible)), tuple(choices), tuple(thresholds))
+ return PseudoEstimate(float(np.max(feasible)), tuple(choices), tuple(thresholds))
- return scores if scores.ndim == 2 else np.stack([-scores / 2, scores / 2], axis=1)
+ return scores if scores.ndim == 2 else np.stack([scores / 2, -scores / 2], axis=1)
- weights = np.exp(shifted - shifted.max(axis=1, keepdims=True))
+ weights = np.exp(shifted - shifted.max())
- if not 0 <= start <= end <= size - 8 - length:
+ if not 0 <= start <= end <= size:

# federated test_privacy test_partition test_lloyd_exactness test_clustering_noise test_anomaly test_scaling
- return vector if norm <= max_norm else (vector * (max_norm / norm)).astype(vector.dtype)
+ return vector if norm <= max_norm else (vector * (norm / max_norm)).astype(vector.dtype)
- distance = (abs(value) - variance / scale) ** 2 / (2 * variance)
+ distance = (abs(value) - variance / scale) ** 2 / variance
- scale_N = np.minimum(1.0, clip / np.maximum(norm_N, np.finfo(float).tiny))
+ scale_N = clip / np.maximum(norm_N, np.finfo(float).tiny)
- outliers = (above_M > np.log(min_ratio)) & (above_M > 4 * spread)
+ outliers = above_M > np.log(min_ratio)
- shares_M = np.where(held_M < balance / clients, shares_M, 0.0)
+ shares_M = np.where(held_M > balance / clients, shares_M, 0.0)
- return centers_KD * self.scale_D + self.offset_D
+ return centers_KD * self.scale_D - self.offset_D

# species test_link_scores test_links_goldens test_link_classifier test_species_priors test_decision_stages
- product = (real * r_real - imaginary * r_imaginary, real * r_imaginary + imaginary * r_real)
+ product = (real * r_real + imaginary * r_imaginary, real * r_imaginary + imaginary * r_real)
- factors = np.maximum(prior_RK, floor) ** strength
+ factors = np.minimum(prior_RK, floor) ** strength
- passes_R = best_scores_R > threshold
+ passes_R = best_scores_R >= threshold
- other_R = ~rows.classes.animals_K[best_K] & (top_R > threshold)
+ other_R = rows.classes.animals_K[best_K] & (top_R > threshold)
- widths = [outputs + index * step for index in reversed(range(layers))]
+ widths = [outputs + index * step for index in range(layers)]
- mixed_T = (counts.size_P > 1)[counts.pair_T]
+ mixed_T = (counts.size_P > 2)[counts.pair_T]

# report test_charts test_results test_pages
- share = 0.5 if self.high == self.low else (value - self.low) / (self.high - self.low)
+ share = 0.5 if self.high == self.low else (self.high - value) / (self.high - self.low)
- step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999999)
+ step = next(factor * power for factor in (1, 2, 5, 10) if factor * power > rough * 1.000001)
- size = math.ceil(len(finite) / max_points)
+ size = len(finite) // max_points
- return Markup("<wbr>").join(re.findall(r"[^/\\]*[/\\]|[^/\\]+", path))
+ return Markup("<wbr>".join(re.findall(r"[^/\\]*[/\\]|[^/\\]+", path)))
- return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
+ return "sha256-" + base64.b64encode(hashlib.sha1(text.encode()).digest()).decode("ascii")
- return title[:1].upper() + title[1:]
+ return title[:1].lower() + title[1:]

# serve test_work test_request_bounds test_hostile_requests
- if self.num_waiting >= self.max_waiting:
+ if self.num_waiting > self.max_waiting:
- left = [row for row in rows if not row.has_ended and not row.is_gone]
+ left = [row for row in rows if not row.has_ended]
- if b"host" not in read_headers(headers):
+ if b"host" in read_headers(headers):
- if self.clients[self._address] > self.max_connections:
+ if self.clients[self._address] >= self.max_connections:
- if len(self._buffer) > MAX_HEAD_BYTES:
+ if len(self._buffer) > 1000 * MAX_HEAD_BYTES:
- if num_new > 0 and self.is_streamed:
+ if num_new > 0 and not self.is_streamed:

# cli test_fields test_verb_settings test_groups
- return "--" + path.rpartition(".")[2].replace("_", "-")
+ return "--" + path.partition(".")[2].replace("_", "-")
- return tuple(part.strip() for part in value.split(",") if part.strip())
+ return tuple(part.strip() for part in value.split(","))
- if number % self.factor:
+ if number // self.factor:
- if ctx.get_parameter_source(parameter.name) in _BY_USER:
+ if ctx.get_parameter_source(parameter.name) not in _BY_USER:
- if args and args[0] not in names and not args[0].startswith("-") and not is_completion:
+ if args and args[0] in names and not args[0].startswith("-") and not is_completion:
- flags = tuple(f"--no-{flag.removeprefix('--')}" for flag in flags)
+ flags = tuple(f"--{flag.removeprefix('--')}" for flag in flags)

# labs test_study test_scenes test_tour
- if low > margin:
+ if high > margin:
- return "opposite" if high < min(margin, 0.0) else "not shown"
+ return "opposite" if low < min(margin, 0.0) else "not shown"
- difference = interval_of([ours[seed] - theirs[seed] for seed in shared])
+ difference = interval_of([theirs[seed] - ours[seed] for seed in shared])
- missing = [name for name in selected if name not in finished]
+ missing = list(selected)
- ordered = sorted(things, key=lambda thing: -thing.size * rng.uniform(0.5, 1.5))
+ ordered = sorted(things, key=lambda thing: thing.size * rng.uniform(0.5, 1.5))
- text = head_noun(main) if rng.random() < 0.2 else main
+ text = main if rng.random() < 0.2 else head_noun(main)
"""
MUTATIONS = tuple(parse_rows(ROWS))


def source_of(room: str) -> str:
    return "src/foveate_labs" if room == LABS else f"src/foveate/{room}"


def find_line(root: Path, mutation: Mutation) -> list[tuple[Path, int]]:
    """Return the modules and indices of all lines of the room that are the mutation's."""
    return [
        (path, index)
        for path in sorted((root / source_of(mutation.room)).rglob("*.py"))
        for index, line in enumerate(path.read_text(encoding="utf-8").splitlines())
        if line.strip() == mutation.old
    ]


def refusals(root: Path, mutations: Iterable[Mutation]) -> list[str]:
    """Name each mutation whose line is not found exactly once."""
    found = ((mutation, find_line(root, mutation)) for mutation in mutations)
    return [
        f"{source_of(mutation.room)}: {len(lines)} lines, expected one: {mutation.old}"
        + "".join(f"\n  {path.relative_to(root)}:{index + 1}" for path, index in lines)
        for mutation, lines in found
        if len(lines) != 1
    ]


def copy_tree(target: Path) -> Path:
    """Copy what git tracks, as it is now."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def run_tests(root: Path, tests: Sequence[str]) -> str:
    """Return the first failed test or error; "" where all pass."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-m", "not slow", "--timeout", str(TIMEOUT), *tests]
    variables = {**os.environ, "PYTHONPATH": str(root / "src"), "OMP_NUM_THREADS": "1"}
    # Container images often set it; all modules would be compiled again for each change.
    variables.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True)
    if done.returncode == 0:
        return ""
    match = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    # A test that takes too long ends the process: no summary names it.
    late = re.search(r"^\+* *Timeout", done.stdout + done.stderr, re.MULTILINE)
    if match is None and late is None:
        raise SystemExit(f"{' '.join(command)} ended with status {done.returncode}:\n{done.stdout}\n{done.stderr}")
    return match[1] if match else "a test that takes too long"


def list_stages(root: Path, mutation: Mutation) -> list[list[str]]:
    """List what is run one after the other until something fails: the modules that are named, then the room."""
    room = f"tests/{mutation.room}"
    named = [path for name in mutation.tests for path in sorted((root / room).rglob(f"{name}.py"))]
    files = [str(path.relative_to(root)) for path in named]
    return [files, [room]] if files else [[room]]


def measure(root: Path, mutation: Mutation) -> tuple[str, str, float]:
    """Apply a mutation, run the tests, take it back; return its line, what failed first, and the seconds."""
    ((path, index),) = find_line(root, mutation)
    before = path.read_text(encoding="utf-8")
    lines = before.splitlines(keepends=True)
    lines[index] = lines[index].replace(mutation.old, mutation.new)
    path.write_text("".join(lines), encoding="utf-8")
    start = time.monotonic()
    try:
        failed = next((failed for tests in list_stages(root, mutation) if (failed := run_tests(root, tests))), "")
    finally:
        path.write_text(before, encoding="utf-8")
    return f"{path.relative_to(root / 'src')}:{index + 1}", failed, time.monotonic() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rooms", nargs="*", help="rooms to measure; all without any")
    parser.add_argument("--check", action="store_true", help="only look for the lines")
    parser.add_argument("--trust", action="store_true", help="do not first run the tests without a change")
    options = parser.parse_args()
    known = list(dict.fromkeys(mutation.room for mutation in MUTATIONS))
    if unknown := [room for room in options.rooms if room not in known]:
        raise SystemExit(f"no room {unknown[0]}; expected one of {', '.join(known)}")
    chosen = [mutation for mutation in MUTATIONS if mutation.room in (options.rooms or known)]
    if refused := refusals(ROOT, chosen):
        raise SystemExit("\n".join(refused))
    if options.check:
        print(f"{len(chosen)} lines in {len({mutation.room for mutation in chosen})} rooms, each found once")
        return
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder:
        root = copy_tree(Path(folder))
        print("| room | line | change | caught by | s |\n|---|---|---|---|---|")
        caught = 0
        for room in dict.fromkeys(mutation.room for mutation in chosen):
            of_room = [mutation for mutation in chosen if mutation.room == room]
            if not options.trust and (failed := run_tests(root, list_stages(root, of_room[0])[0])):
                raise SystemExit(f"{room}: {failed} fails without any change")
            for mutation in of_room:
                line, failed, seconds = measure(root, mutation)
                caught += bool(failed)
                change = f"`{mutation.old}` -> `{mutation.new}`".replace("|", "\\|")
                print(f"| {room} | {line} | {change} | {failed or '**not caught**'} | {seconds:.0f} |", flush=True)
    print(f"\n{caught} of {len(chosen)} caught")


if __name__ == "__main__":
    main()
