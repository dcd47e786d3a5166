package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"

	"vhdfs/ops"
)

// manPages are the manual pages of section 1 by file name: one of the program, and
// one for each operation.
func manPages(app *cli.App) map[string]string {
	pages := map[string]string{"vhdfs.1": mainPage(app)}
	for _, op := range ops.All {
		pages["vhdfs-"+op.Name+".1"] = opPage(op)
	}
	return pages
}

// writeManPages writes them into a folder, which is made where it is missing.
func writeManPages(app *cli.App, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, text := range manPages(app) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// page is a manual page that is being written.
type page struct{ strings.Builder }

// newPage begins a page with its name and what it is about.
func newPage(name, brief string) *page {
	p := &page{}
	fmt.Fprintf(p, ".TH %s 1 \"\" \"vhdfs %s\" \"User Commands\"\n", strings.ToUpper(roff(name)), version)
	p.section("NAME")
	fmt.Fprintf(p, "%s \\- %s\n", roff(name), roff(brief))
	return p
}

func (p *page) section(name string) { fmt.Fprintf(p, ".SH %s\n", name) }

func (p *page) text(s string) { fmt.Fprintf(p, "%s\n", roff(s)) }

// item is a term with what is said of it.
func (p *page) item(term, s string) { fmt.Fprintf(p, ".TP\n.B %s\n%s\n", roff(term), roff(s)) }

// roff makes text safe: nothing in it is a request or an escape.
func roff(s string) string {
	s = strings.NewReplacer(`\`, `\e`, "-", `\-`, "\n", " ").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		return `\&` + s
	}
	return s
}

func mainPage(app *cli.App) string {
	p := newPage("vhdfs", app.Usage)
	p.section("SYNOPSIS")
	p.text("vhdfs COMMAND [OPTION]... ARGUMENT...")
	p.section("DESCRIPTION")
	p.text("A mount shows each image of a folder as a directory, with the bytes of the disk in raw, " +
		"what is known of it as JSON, and one file for each operation: a request is written to it, the answer is read from it.")
	p.section("COMMANDS")
	for _, c := range app.Commands {
		if !c.Hidden {
			p.item(strings.TrimSpace(c.Name+" "+c.ArgsUsage), c.Usage+".")
			p.flags(c.Flags)
		}
	}
	p.section("EXIT STATUS")
	p.text("0 on success; what the others mean is in docs/exit-codes.md.")
	p.section("SEE ALSO")
	names := make([]string, len(ops.All))
	for i, op := range ops.All {
		names[i] = "vhdfs-" + op.Name + "(1)"
	}
	p.text(strings.Join(names, ", "))
	return p.String()
}

func (p *page) flags(flags []cli.Flag) {
	if len(flags) == 0 {
		return
	}
	p.WriteString(".RS\n")
	for _, f := range flags {
		term, usage, _ := strings.Cut(f.String(), "\t")
		p.item(term, usage)
	}
	p.WriteString(".RE\n")
}

func opPage(op *ops.Op) string {
	p := newPage("vhdfs-"+op.Name, op.Brief)
	p.section("SYNOPSIS")
	p.text(strings.TrimSpace("vhdfs " + op.Name + " [OPTION]... " + subject(op) + " " + op.Synopsis()))
	p.section("DESCRIPTION")
	p.text(strings.ToUpper(op.Brief[:1]) + op.Brief[1:] + ".")
	if op.Method != "" {
		p.text("It is " + op.Method + " of Msvm_ImageManagementService.")
	}
	file := "the file " + op.File() + " in the directory of an image"
	if op.Service {
		file = "the file .vhdfs/" + op.File()
	}
	p.text("In a mount the same request is written to " + file + ".")
	p.section("ARGUMENTS")
	for _, a := range slices.Concat(op.Args, ops.Common) {
		p.item(a.Form(), a.Description())
	}
	p.section("OPTIONS")
	p.flags(opCommand(op).Flags)
	p.section("SEE ALSO")
	p.text("vhdfs(1)")
	return p.String()
}
