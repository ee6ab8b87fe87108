package delivery

// Items puts together what is pending and what the history says.
var Items = items
