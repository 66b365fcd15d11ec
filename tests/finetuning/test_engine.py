"""Processes and their shares."""

import pytest

from sr4g_utils.finetuning import log
from sr4g_utils.finetuning.choices import Choices


def test_processes_must_divide_the_batch() -> None:
    with pytest.raises(ValueError, match="batch: 64 does not divide by 3 processes"):
        log.share_of(Choices(), 3, 1)
    assert log.share_of(Choices(batch=66, micro_batch=11), 3, 1) == range(22, 44)
    assert log.share_of(Choices(batch=64, micro_batch=16), 8, 7) == range(56, 64)  # at most
    with pytest.raises(ValueError, match="micro_batch: 7 does not divide a process's 22"):
        log.share_of(Choices(batch=66, micro_batch=7), 3, 1)


def test_peaks_are_matched_from_the_longest_name() -> None:
    """ "H100 PCIe" must not be taken for "H100", nor "A10G" for "A10"."""
    names = list(log.PEAKS)
    for i, name in enumerate(names):
        assert not any(earlier in name for earlier in names[:i])
