package vhdx

import "math/bits"

// bitRun is the number of bits equal to bit `first` from there on, at most limit.
// Bits count from the least significant of each byte ([MS-VHDX] 2.4.2); b is a
// multiple of 8 bytes long.
func bitRun(b []byte, first, limit int64) (set bool, n int64) {
	limit = min(limit, int64(len(b))*8-first)
	set = b[first/8]>>(first%8)&1 != 0
	for n < limit {
		at := first + n
		w := le.Uint64(b[at/64*8:]) >> (at % 64)
		if set {
			w = ^w
		}
		// Zeros shifted in from above look equal when unset: the word's end bounds them.
		same := min(int64(bits.TrailingZeros64(w)), 64-at%64)
		n += same
		if same < 64-at%64 {
			break
		}
	}
	return set, min(n, limit)
}

// setBits sets n bits from bit first on.
func setBits(b []byte, first, n int64) {
	for i := first; i < first+n; {
		if i%8 == 0 && first+n-i >= 8 {
			b[i/8] = 0xff
			i += 8
			continue
		}
		b[i/8] |= 1 << (i % 8)
		i++
	}
}
