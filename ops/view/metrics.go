package view

import (
	"bufio"
	"io"
	"strconv"
	"strings"
)

// Metric is one family of the Prometheus text format.
type Metric struct {
	Name    string // "vhdfs_read_bytes_total"
	Help    string
	Type    string // "counter" or "gauge"
	Samples []Sample
}

// Sample is one value of a metric. Labels are pairs of name and value.
type Sample struct {
	Labels [][2]string
	Value  float64
}

// labelEscapes are those of the exposition format, for values of labels.
var labelEscapes = strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`)

// helpEscapes are those for help texts.
var helpEscapes = strings.NewReplacer(`\`, `\\`, "\n", `\n`)

// WriteMetrics writes metrics in the text format, version 0.0.4.
func WriteMetrics(w io.Writer, metrics []Metric) error {
	b := bufio.NewWriter(w)
	for i := range metrics {
		metrics[i].write(b)
	}
	return b.Flush()
}

func (m *Metric) write(b *bufio.Writer) {
	b.WriteString("# HELP " + m.Name + " " + helpEscapes.Replace(m.Help) + "\n")
	b.WriteString("# TYPE " + m.Name + " " + m.Type + "\n")
	for _, s := range m.Samples {
		b.WriteString(m.Name)
		for i, l := range s.Labels {
			b.WriteString(string("{,"[min(i, 1)]) + l[0] + `="` + labelEscapes.Replace(l[1]) + `"`)
		}
		if len(s.Labels) > 0 {
			b.WriteByte('}')
		}
		b.WriteString(" " + strconv.FormatFloat(s.Value, 'f', -1, 64) + "\n")
	}
}
