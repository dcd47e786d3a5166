package mount

import (
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
)

// Count is how often a test does what it does: the environment's figure, if it
// has one, as in a soak, else that for every change.
func Count(t testing.TB, name string, usual int) int {
	t.Helper()
	s := os.Getenv(name)
	if s == "" {
		return usual
	}
	n, err := strconv.Atoi(s)
	require.NoError(t, err, name)
	require.Positive(t, n, name)
	return n
}

// Seed is where a test's random choices begin: VHDFS_SEED, or a new one in every
// run. It is printed: the same seed makes the same choices again.
func Seed(t testing.TB) uint64 {
	t.Helper()
	seed := rand.Uint64() >> 32
	if s := os.Getenv("VHDFS_SEED"); s != "" {
		var err error
		seed, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, "VHDFS_SEED")
	}
	t.Logf("VHDFS_SEED=%d", seed)
	return seed
}
