"""The checksum of TFRecord files: CRC-32C (Castagnoli, RFC 3720), computed with numpy over many lanes at once."""

from __future__ import annotations

import functools

import numpy as np

POLYNOMIAL = 0x82F63B78  # reflected
LANE = 256  # bytes of one lane
BLOCK = 4096 * LANE  # bytes whose lanes go through the table together
SHORT = 4 * LANE  # below this, byte by byte
MASK_DELTA = 0xA282EAD8


def crc32c(data: bytes | memoryview) -> int:
    """CRC-32C of `data`."""
    numbers = np.frombuffer(data, np.uint8)
    if len(numbers) < SHORT:
        table, state = _table(), 0xFFFFFFFF
        for byte in numbers.tolist():
            state = int(table[(state ^ byte) & 0xFF]) ^ (state >> 8)
        return state ^ 0xFFFFFFFF
    # With its first four bytes inverted a CRC is linear from 0 on: zeros in front change nothing, and what came before
    # is shifted over what follows and added. So the first block is filled up in front, and every shift is one of a few.
    first = len(numbers) % BLOCK or BLOCK
    head = np.zeros(1 << (max(first, LANE) - 1).bit_length(), np.uint8)
    head[-first:] = numbers[:first]
    head[len(head) - first : len(head) - first + 4] ^= 0xFF
    state = _linear(head)
    for start in range(first, len(numbers), BLOCK):
        state = _apply(_zeros(BLOCK), np.array([state]))[0] ^ _linear(numbers[start : start + BLOCK])
    return int(state) ^ 0xFFFFFFFF


def masked_crc32c(data: bytes | memoryview) -> int:
    """As TFRecord stores it: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & 0xFFFFFFFF


def _linear(block: np.ndarray) -> np.uint32:
    """The state after a block from 0 on; its length is a power of two and at least LANE."""
    table, lanes, length = _table(), np.zeros(len(block) // LANE, np.uint32), LANE
    for column in np.ascontiguousarray(block.reshape(-1, LANE).T):
        lanes = table[(lanes ^ column) & 0xFF] ^ (lanes >> np.uint32(8))
    while len(lanes) > 1:
        lanes = _apply(_zeros(length), lanes[0::2]) ^ lanes[1::2]
        length *= 2
    return lanes[0]


def _apply(matrix: np.ndarray, values: np.ndarray) -> np.ndarray:
    """A matrix over bits, 32 columns as numbers, times each value."""
    found = np.zeros_like(values)
    for bit in range(32):
        found ^= np.where((values >> np.uint32(bit)) & np.uint32(1), matrix[bit], np.uint32(0))
    return found


@functools.lru_cache(maxsize=64)
def _zeros(length: int) -> np.ndarray:
    """What `length` bytes of zero do to each bit of the state, by squaring; columns of `_apply`."""
    found = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power = _table()[found & np.uint32(0xFF)] ^ (found >> np.uint32(8))  # one byte
    while length:
        if length & 1:
            found = _apply(power, found)
        power = _apply(power, power)
        length >>= 1
    return found


@functools.lru_cache(maxsize=1)
def _table() -> np.ndarray:
    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & np.uint32(1), (table >> np.uint32(1)) ^ np.uint32(POLYNOMIAL), table >> np.uint32(1))
    return table
