core.register_action("slow", { "http-req" }, function(txn) core.sleep(2) end)
