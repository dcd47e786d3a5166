package vhdx

import (
	"os"
	"testing"

	"github.com/stretchr/testify/require"
)

// The power goes at any time: the repair can be done again, and is not lost once it
// was answered.
func TestStatesOfRepairs(t *testing.T) {
	for name, c := range repairTests() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n, err := c.damaged(t).Cut(t)
			require.NoError(t, err)
			t.Logf("%d states, %d failed calls", n, c.damaged(t).Fail(t))
		})
	}
}

// repairStates is how many states of a repair are tried: both region tables are a log
// entry of 34 pages.
func repairStates() int {
	if os.Getenv("CI") != "" {
		return 150
	}
	return 60
}

func TestEverySyncOfARepairIsNeeded(t *testing.T) {
	for label, name := range map[string]string{
		"vhdx.header.emptied": "empty log", "vhdx.log.entry": "region table 1", "vhdx.replay": "dirty log",
		"vhdx.cut": "bytes behind the last block",
	} {
		t.Run(label, func(t *testing.T) {
			_, err := repairTests()[name].damaged(t).Cut(t, label)
			require.Error(t, err)
			t.Log(err)
		})
	}
}
