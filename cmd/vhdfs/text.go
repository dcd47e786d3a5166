package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"text/tabwriter"

	"vhdfs/ops"
	"vhdfs/ops/view"
)

// columns is a writer that aligns cells separated by tabs.
func columns(w io.Writer) *tabwriter.Writer { return tabwriter.NewWriter(w, 0, 0, 2, ' ', 0) }

// printable quotes text that would steer a terminal or break a column.
func printable(s string) string {
	for _, r := range s {
		if !strconv.IsPrint(r) {
			return strconv.Quote(s)
		}
	}
	return s
}

// size is bytes with the unit that people read beside it.
func size(n int64) string {
	const units = "KMGT"
	unit, v := -1, float64(n)
	for v >= 1024 && unit < len(units)-1 {
		v /= 1024
		unit++
	}
	if unit < 0 {
		return fmt.Sprintf("%d", n)
	}
	return fmt.Sprintf("%d (%s %ciB)", n, strings.TrimSuffix(fmt.Sprintf("%.1f", v), ".0"), units[unit])
}

// pairs prints names with their values, those that are empty left out.
func pairs(w io.Writer, list [][2]string) error {
	t := columns(w)
	for _, p := range list {
		if p[1] != "" {
			fmt.Fprintf(t, "%s\t%s\n", p[0], printable(p[1]))
		}
	}
	return t.Flush()
}

var formatNames = map[uint16]string{ops.FormatISO: "ISO", ops.FormatVHD: "VHD", ops.FormatVHDX: "VHDX", ops.FormatSet: "VHD set"}

func infoText(w io.Writer, in *info) error {
	var list [][2]string
	add := func(name, value string) { list = append(list, [2]string{name, value}) }
	st := in.State
	if s := in.SettingData; s != nil {
		add("Path", s.Path)
		add("Format", formatNames[s.Format])
		add("Type", st.Type)
		add("Virtual size", size(s.MaxInternalSize))
		add("Block size", nonzero(int64(s.BlockSize)))
		add("Sectors", fmt.Sprintf("%d logical, %d physical", s.LogicalSectorSize, s.PhysicalSectorSize))
		add("Disk id", s.VirtualDiskId.String())
		add("Parent", s.ParentPath)
		add("Parent id", strings.ToLower(s.ParentIdentifier))
	}
	add("File size", size(st.FileSize))
	add("Allocated", size(st.AllocatedSize))
	if st.MinInternalSize != nil {
		add("Smallest size", size(*st.MinInternalSize))
	}
	if st.FragmentationPercentage != nil {
		add("Fragmentation", fmt.Sprintf("%d %%", *st.FragmentationPercentage))
	}
	add("Creator", st.Creator)
	add("Label", st.Label)
	add("Log", st.LogState)
	add("Read-only", st.ReadOnlyReason)
	add("Device", st.Device)
	add("Children", strings.Join(st.Children, ", "))
	for _, a := range st.Anomalies {
		add("Anomaly", anomalyText(a))
	}
	add("Error", st.Error)
	return pairs(w, list)
}

func nonzero(n int64) string {
	if n == 0 {
		return ""
	}
	return size(n)
}

func anomalyText(a ops.Anomaly) string {
	return fmt.Sprintf("%s: %s: %s: %s", a.Severity, a.Name, a.Where, a.Text)
}

func chainText(w io.Writer, r io.Reader) error {
	var c view.Chain
	if err := json.NewDecoder(r).Decode(&c); err != nil {
		return err
	}
	t := columns(w)
	fmt.Fprintln(t, "TYPE\tSIZE\tFOUND BY\tPATH")
	for _, im := range c.Images {
		fmt.Fprintf(t, "%s %s\t%d\t%s\t%s\n", im.Format, im.Type, im.Size, im.FoundBy, printable(im.Path))
	}
	if err := t.Flush(); err != nil {
		return err
	}
	for _, im := range c.Images {
		if im.Parent == nil {
			continue
		}
		for _, p := range im.Parent.PassedOver {
			fmt.Fprintf(w, "passed over %s (%s): %s\n", printable(p.Path), p.Rule, printable(p.Why))
		}
		for _, warning := range im.Parent.Warnings {
			fmt.Fprintf(w, "warning: %s\n", printable(warning))
		}
	}
	if c.Whole {
		return nil
	}
	fmt.Fprintln(w, printable(c.Error))
	return reported{exitOf(c.Errno)}
}

// mapText prints runs as they come: a map may be longer than memory.
func mapText(w io.Writer, r io.Reader) error {
	d := json.NewDecoder(r)
	for { // to the list of runs
		tok, err := d.Token()
		if err != nil {
			return err
		}
		if tok == "Runs" {
			break
		}
	}
	if _, err := d.Token(); err != nil {
		return err
	}
	fmt.Fprintf(w, "%16s  %16s  %-4s  %16s  %s\n", "OFFSET", "LENGTH", "KIND", "AT", "FILE")
	for d.More() {
		var run view.Run
		if err := d.Decode(&run); err != nil {
			return err
		}
		at := "-"
		if run.At != nil {
			at = strconv.FormatInt(*run.At, 10)
		}
		fmt.Fprintf(w, "%16d  %16d  %-4s  %16s  %s\n", run.Offset, run.Length, run.Kind, at, printable(run.File))
	}
	_, err := d.Token() // the end of the list: it did not stop in the middle
	return err
}

func partitionsText(w io.Writer, r io.Reader) error {
	var p view.Partitions
	if err := json.NewDecoder(r).Decode(&p); err != nil {
		return err
	}
	t := columns(w)
	fmt.Fprintf(t, "table %s %s of %s\n", p.Scheme, printable(p.ID), size(p.Size))
	fmt.Fprintln(t, "FILE\tSTART\tLENGTH\tTYPE\tLABEL\tREMARK")
	for _, e := range p.Partitions {
		kind := e.TypeName
		if kind == "" {
			kind = e.Type
		}
		fmt.Fprintf(t, "%s\t%d\t%d\t%s\t%s\t%s\n", e.File, e.Start, e.Length, printable(kind), printable(e.Label), printable(e.NoFile))
	}
	if p.UnallocatedTail > 0 {
		fmt.Fprintf(t, "-\t%d\t%d\tunallocated\t\t\n", p.Size-p.UnallocatedTail, p.UnallocatedTail)
	}
	for _, a := range p.Anomalies {
		fmt.Fprintln(t, printable(anomalyText(a)))
	}
	return t.Flush()
}
