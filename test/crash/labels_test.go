package crash_test

import (
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// syncLabels are the labels of syncs in the sources of packages: literals that are
// passed to a Sync, or as the parameter "label" of a function, or that a loop's
// variable of that name takes.
func syncLabels(t *testing.T, dirs ...string) []string {
	t.Helper()
	labels := map[string]bool{}
	for _, dir := range dirs {
		files := sources(t, dir)
		takes := map[string]int{"Sync": 0} // function: index of its parameter
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool {
				if d, ok := n.(*ast.FuncDecl); ok {
					for i, name := range parameters(d.Type) {
						if name == "label" {
							takes[d.Name.Name] = i
						}
					}
				}
				return true
			})
		}
		for _, f := range files {
			ast.Inspect(f, func(n ast.Node) bool { note(n, takes, labels); return true })
		}
	}
	require.Greater(t, len(labels), 10)
	return slices.Sorted(maps.Keys(labels))
}

func sources(t *testing.T, dir string) []*ast.File {
	t.Helper()
	names, err := filepath.Glob(dir + "/*.go")
	require.NoError(t, err)
	var files []*ast.File
	for _, name := range names {
		if !strings.HasSuffix(name, "_test.go") {
			f, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.SkipObjectResolution)
			require.NoError(t, err)
			files = append(files, f)
		}
	}
	return files
}

// parameters are the names of a function's parameters in order.
func parameters(f *ast.FuncType) (names []string) {
	for _, field := range f.Params.List {
		for _, name := range field.Names {
			names = append(names, name.Name)
		}
		if len(field.Names) == 0 {
			names = append(names, "")
		}
	}
	return names
}

func note(n ast.Node, takes map[string]int, labels map[string]bool) {
	add := func(e ast.Expr) {
		if lit, ok := e.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			if s, err := strconv.Unquote(lit.Value); err == nil {
				labels[s] = true
			}
		}
	}
	switch n := n.(type) {
	case *ast.CallExpr:
		name := ""
		switch f := n.Fun.(type) {
		case *ast.Ident:
			name = f.Name
		case *ast.SelectorExpr:
			name = f.Sel.Name
		}
		if i, ok := takes[name]; ok && i < len(n.Args) {
			add(n.Args[i])
		}
	case *ast.RangeStmt:
		if v, ok := n.Value.(*ast.Ident); ok && v.Name == "label" {
			if list, ok := n.X.(*ast.CompositeLit); ok {
				for _, e := range list.Elts {
					add(e)
				}
			}
		}
	}
}
