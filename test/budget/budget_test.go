package budget

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRunsAreWrittenDown(t *testing.T) {
	log := t.TempDir() + "/log"
	t.Setenv("VHDFS_SOAK_LOG", log)
	t.Setenv("VHDFS_SEED", "7")
	t.Setenv("VHDFS_SOAK", "10000000")
	require.Equal(t, 10_000_000, Of(t, 1, 2))
	for range 2 {
		t.Run("engine", func(t *testing.T) {
			r := Start(t, "crash", "states")
			require.Equal(t, uint64(7), r.Seed())
			r.Add("states", 3)
			r.Add("states", 4)
			require.NoError(t, r.Broken(nil))
			require.Error(t, r.Broken(errors.New("one")))
		})
	}
	b, err := os.ReadFile(log)
	require.NoError(t, err)
	dec := json.NewDecoder(bytes.NewReader(b))
	for range 2 {
		var line map[string]any
		require.NoError(t, dec.Decode(&line))
		require.Positive(t, line["seconds"].(float64)+1)
		delete(line, "seconds")
		require.Equal(t, map[string]any{"engine": "crash", "seed": 7.0, "counts": map[string]any{"states": 7.0}, "violations": 1.0}, line)
	}
}

func TestUsualBudgets(t *testing.T) {
	t.Setenv("VHDFS_SOAK", "")
	t.Setenv("VHDFS_SEED", "")
	t.Setenv("CI", "")
	require.Equal(t, 1, Of(t, 1, 2))
	require.Equal(t, uint64(1), Seed(t))
	t.Setenv("CI", "true")
	require.Equal(t, 2, Of(t, 1, 2))
}
