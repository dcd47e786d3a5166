package main

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"vhdfs/ops"
)

func TestReadmeHasTheTableOfOperations(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	require.NoError(t, err)
	_, rest, found := strings.Cut(string(readme), tableStart)
	require.True(t, found)
	table, _, found := strings.Cut(rest, tableEnd)
	require.True(t, found)
	require.Equal(t, operationTable(), tableStart+table+tableEnd, "replace it with the output of vhdfs docs")
}

func TestExitCodesAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/exit-codes.md")
	require.NoError(t, err)
	for _, c := range ops.Classes {
		require.Contains(t, string(doc), fmt.Sprintf("\n| %d |", c.Exit), "%v", c.Err)
	}
}

var (
	anomalyName = regexp.MustCompile(`"((?:vhdx|vhd|vhds|iso|vfd|part|chain|image|profile)(?:\.[a-z0-9-]+)+)"`)
	anomalyRow  = regexp.MustCompile(`(?m)^\| ([a-z0-9.-]+\.[a-z0-9-]+) \| (note|warning|error) \| `)
	// Labels of writes look like names of anomalies; so do names of documents.
	noAnomaly = regexp.MustCompile(`(?i)\b(sync|setsync|synclocked|truncate|putheaderlocked)\(|label|\.json|^\s*//`)
)

// docs/anomalies.md lists the anomalies that the code names, all and no others.
func TestAnomaliesAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/anomalies.md")
	require.NoError(t, err)
	documented := map[string]bool{}
	for _, m := range anomalyRow.FindAllStringSubmatch(string(doc), -1) {
		require.False(t, documented[m[1]], "%s twice", m[1])
		documented[m[1]] = true
	}
	named := map[string]bool{}
	for _, dir := range []string{"ops", "ops/part", "vhd", "vhdx", "iso", "vfd"} {
		files, err := filepath.Glob(filepath.Join("../..", dir, "*.go"))
		require.NoError(t, err)
		for _, file := range files {
			if strings.HasSuffix(file, "_test.go") {
				continue
			}
			b, err := os.ReadFile(file)
			require.NoError(t, err)
			for line := range strings.Lines(string(b)) {
				if m := anomalyName.FindStringSubmatch(line); m != nil && !noAnomaly.MatchString(line) {
					named[m[1]] = true
				}
			}
		}
	}
	require.Greater(t, len(named), 40)
	require.Equal(t, documented, named)
}
